"""What `deepseek-r1 serve` serves when nothing is said: the embedded model and its adapter. Nothing is scripted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from real_server import start_real
from server_process import Running

from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.models import embedded
from deepseek_r1.models.adapters import WEIGHTS_FILE
from deepseek_r1.serve.app import run_server

BASE = "SmolLM2-135M-Instruct"
SUM: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 17 + 26?"}], "temperature": 0}
PATIENCE = 240.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start_real(tmp_path_factory.mktemp("e"), "--memory", "1500MiB", "--max-concurrent", "4")
    yield running
    running.close()


@pytest.fixture(scope="module")
def ask(served: Running) -> Iterator[openai.OpenAI]:
    with served.client(timeout=PATIENCE) as client:
        yield client


def test_the_adapter_is_listed_first(ask: openai.OpenAI, served: Running) -> None:
    listed = [model.model_dump() for model in ask.models.list()]
    assert [(m["id"], m["root"], m["parent"]) for m in listed] == [("r1-lite", "r1_lite", BASE), (BASE, BASE, None)]
    assert ask.models.retrieve("default").id == "r1-lite"
    assert served.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).json()["model"] == "r1-lite"


@pytest.mark.parametrize("model", ["default", "r1-lite"])
def test_it_thinks_and_answers(ask: openai.OpenAI, model: str) -> None:
    answer = ask.chat.completions.create(model=model, max_tokens=60, **SUM)
    choice = answer.choices[0]
    thought, said = choice.message.reasoning_content, choice.message.content
    assert answer.model == "r1-lite" and choice.finish_reason == "stop"
    assert said.strip() and thought.strip().endswith(said.strip()) and "think>" not in thought + said
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    deltas = [
        chunk.choices[0].delta for chunk in ask.chat.completions.create(model=model, max_tokens=60, stream=True, **SUM)
    ]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert "".join(delta.content or "" for delta in deltas) == said


def test_the_base_answers_by_its_name(ask: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Name the capital of France."}]
    answer = ask.chat.completions.create(model=BASE, messages=messages, temperature=0)
    assert answer.model == BASE
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].message.reasoning_content is None


def test_damaged_files_end_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "r1_lite"
    shutil.copytree(embedded.FOLDER, folder)
    (folder / WEIGHTS_FILE).write_bytes(b"nothing")
    monkeypatch.setattr(embedded, "FOLDER", folder)
    with pytest.raises(DeepSeekError) as caught:
        run_server(ServeConfig(port=0, memory=1500 << 20))
    assert str(folder / WEIGHTS_FILE) in caught.value.message
