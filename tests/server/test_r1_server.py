"""R1's own architecture behind the server: guesses change nothing, experts show in the metrics, refusals are clear."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_server import refuse_to_start, start_real
from server_process import Running
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from deepseek_r1 import DeepSeekModel
from deepseek_r1.models.saving import save_model
from support import tiny

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def with_bytes_as_tokens(folder: Path) -> Path:
    """Give the model in `folder` a tokenizer: a token per byte, and some that no text makes."""
    texts = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"~{i}~" for i in range(tiny.SHAPE["vocab_size"] - 256))]
    tokenizer = Tokenizer(BPE({text: place for place, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def model(models_folder: Path) -> Path:
    decoder = tiny.with_prediction_module(tiny.save("deepseek_v3", models_folder))
    return with_bytes_as_tokens(save_model(decoder, models_folder / "r1-with-module"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start_real(tmp_path_factory.mktemp("s"), str(model), "--speculative", "mtp", "--max-concurrent", "4")
    yield running
    running.close()


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "abc", "temperature": 0, "max_tokens": 40},
    {"prompt": "What is the root of it all?", "temperature": 1.3, "seed": 7, "max_tokens": 60},
    {"prompt": "abcabcabc", "temperature": 0.8, "seed": 1, "top_p": 0.9, "frequency_penalty": 0.4, "max_tokens": 50},
]


def test_speculation_changes_no_token(server: Running, model: Path) -> None:
    plain = DeepSeekModel.from_pretrained(model)
    with server.client() as client:
        for words in REQUESTS:
            answer = client.completions.create(model="default", logprobs=0, extra_body={"ignore_eos": True}, **words)
            want = plain.generate(ignore_eos=True, **words)
            assert answer.choices[0].text == want.text
            assert answer.usage is not None and answer.usage.completion_tokens == words["max_tokens"]
            assert answer.choices[0].logprobs is not None
            assert len(answer.choices[0].logprobs.tokens or []) == words["max_tokens"]
    metrics = server.http.get("/metrics").text
    assert float(re.search(r"^deepseek_r1_draft_tokens_total (\S+)", metrics, re.M)[1]) > 50


def test_the_use_of_experts_is_exported(server: Running) -> None:
    with server.client() as client:
        client.completions.create(model="default", prompt="some tokens for the routers", max_tokens=20)
    deadline = time.monotonic() + 15
    found: dict[str, float] = {}
    while not found and time.monotonic() < deadline:  # it comes with the answer to the next ping
        metrics = server.http.get("/metrics").text
        pairs = re.findall(r'^deepseek_r1_expert_utilization\{layer="(\d+)"\} (\S+)', metrics, re.M)
        found = {layer: float(value) for layer, value in pairs}
        time.sleep(0.1)
    assert found.keys() == {"1", "2"}, "the layers with experts; the first is dense"
    assert all(0.3 < value <= 1 for value in found.values())


def test_a_model_without_a_module_is_refused(tmp_path: Path, models_folder: Path) -> None:
    folder = with_bytes_as_tokens(tiny.save("qwen2", models_folder))
    code, errors, _ = refuse_to_start(tmp_path, str(folder), "--speculative", "mtp", "--port", "0")
    assert code == 1 and "prediction module" in errors and "choose --speculative ngram" in errors
    assert "Traceback" not in errors
