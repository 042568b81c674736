"""Low-rank adapters over HTTP: listed, chosen by the request's model, and refused before anything is served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from real_server import embedded, refuse_to_start, start_real
from safetensors import safe_open
from server_process import Launcher, Running, chat, script, wait_for

from deepseek_r1 import DeepSeekModel
from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.core.errors import CapacityError, RequestError
from deepseek_r1.engine import build, memory
from deepseek_r1.engine.build import load_engine
from deepseek_r1.models.adapters import add_adapter, factors, save_adapter
from deepseek_r1.models.loading import load_decoder
from support import tiny

Start = Callable[..., Running]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters as the scripted engine takes them: it only looks whether the folder is there."""
    folder = tmp_path_factory.mktemp("adapters")
    for name in ("poems", "office"):
        (folder / name).mkdir()
    return [f"poet={folder / 'poems'}", f"clerk={folder / 'office'}"]


@pytest.fixture(scope="module")
def scripted(launcher: Launcher, folders: list[str]) -> Iterator[Running]:
    running = launcher.start(adapter=folders)
    yield running
    running.close()


def who(client: openai.OpenAI, **words: Any) -> tuple[str, str]:
    """What the scripted engine was asked for, and what the answer says that it came from."""
    answer = client.chat.completions.create(messages=chat(name=True), **words)
    return answer.choices[0].message.content or "", answer.model


def test_models_lists_the_base_and_its_adapters(scripted: Running) -> None:
    with scripted.client() as client:
        listed = [model.model_dump() for model in client.models.list()]
        assert [(m["id"], m["root"], m["parent"]) for m in listed] == [
            ("tiny", "tiny", None),
            ("poet", "poems", "tiny"),
            ("clerk", "office", "tiny"),
        ]
        assert {(m["object"], m["max_model_len"]) for m in listed} == {("model", 1024)}
        assert [client.models.retrieve(m["id"]).model_dump() for m in listed] == listed
        assert client.models.retrieve("default").id == "tiny"


def test_the_requests_model_chooses(scripted: Running) -> None:
    with scripted.client() as client:
        wanted = {"default": "none", "tiny": "none", "poet": "poet", "clerk": "clerk"}
        for model, adapter in wanted.items():
            answered = "tiny" if adapter == "none" else adapter
            assert who(client, model=model) == (adapter, answered)
            text = client.completions.create(model=model, prompt=script(name=True), n=2)
            assert [choice.text for choice in text.choices] == [adapter, adapter] and text.model == answered
            chunks = list(client.chat.completions.create(model=model, messages=chat(name=True), stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == adapter
            assert {chunk.model for chunk in chunks} == {answered}
    body = {"messages": chat(name=True)}
    assert scripted.http.post("/v1/chat/completions", json=body).json()["model"] == "tiny"
    assert scripted.http.post("/tokenize", json={"prompt": "ab", "model": "poet"}).json()["tokens"] == [97, 98]


def test_an_adapter_that_thinks(scripted: Running) -> None:
    """Tags in an adapter's text are found as those of any model: nothing in its files says that it thinks."""
    words: dict[str, Any] = {"model": "poet", "messages": chat(say="<think>\n17+26=43\n</think>\n43")}
    with scripted.client() as client:
        message = client.chat.completions.create(**words).choices[0].message.model_dump()
        assert (message["reasoning_content"], message["content"]) == ("17+26=43\n", "43")
        parts = [chunk.choices[0].delta.model_dump() for chunk in client.chat.completions.create(**words, stream=True)]
        for name in ("reasoning_content", "content"):
            assert "".join(part.get(name) or "" for part in parts) == message[name]


def test_other_models_are_not_served(scripted: Running) -> None:
    words = "the model 'Poet' is not served here; use 'default', 'tiny', 'poet' or 'clerk'"
    for path, body in (
        ("/v1/chat/completions", {"messages": chat(name=True)}),
        ("/v1/completions", {"prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        answer = scripted.http.post(path, json={"model": "Poet", **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["message"] == words
    assert scripted.http.get("/v1/models/Poet").json()["error"]["message"] == words


def test_default_may_mean_an_adapter(start: Start, folders: list[str]) -> None:
    server = start(adapter=folders, default_adapter="clerk")
    with server.client() as client:
        assert [model.id for model in client.models.list()] == ["clerk", "tiny", "poet"]
        assert client.models.retrieve("default").id == "clerk"
        wanted = [("clerk", "clerk"), ("none", "tiny"), ("poet", "poet")]
        assert [who(client, model=model) for model in ("default", "tiny", "poet")] == wanted
        assert server.http.post("/v1/completions", json={"prompt": script(name=True)}).json()["model"] == "clerk"
        server.engine().kill()
        wait_for(lambda: not server.ready())
        wait_for(server.ready)
        assert [who(client, model=model) for model in ("default", "tiny", "poet")] == wanted, "after a restart too"


def test_a_name_that_is_the_bases_own(spawn: Start, folders: list[str]) -> None:
    server = spawn(adapter=[folders[0].replace("poet=", "tiny=")])
    assert server.process.wait(20) == 2
    assert "'tiny' is what the model itself is called, not the adapter in" in server.process.stdout.read()


# --- nothing below is scripted ----------------------------------------------------------------------------------------

PATIENCE = 240.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the default model, with random products."""
    decoder = load_decoder(embedded(), parse_precision("bf16"), pack=True)
    folder = tmp_path_factory.mktemp("made")
    found = {}
    for seed, (name, targets) in enumerate({"one": ("q_proj", "v_proj"), "two": ("all-linear",)}.items()):
        config = LoraConfig(r=4, alpha=4.0, targets=targets)
        add_adapter(decoder, name, config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for part in factors(decoder, name).values():
            part.lora_B.weight.data.normal_(0, 0.4, generator=generator)
        found[name] = str(save_adapter(decoder, name, folder / name, config, "SmolLM2-135M-Instruct"))
    return found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, made: dict[str, str]) -> Iterator[Running]:
    words = [word for name, folder in made.items() for word in ("--adapter", f"{name}={folder}")]
    sizes = ("--memory", "1500MiB", "--max-concurrent", "8")
    running = start_real(tmp_path_factory.mktemp("a"), *sizes, *words)
    yield running
    running.close()


QUESTIONS = ("Tell me a short story about a fox.", "What is the sea?")
MODELS = ("default", "one", "two")
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def test_adapters_share_batches_and_answer_as_alone(real: Running, made: dict[str, str]) -> None:
    with real.client(timeout=PATIENCE) as client:

        def answer(asked: tuple[str, str]) -> str:
            model, question = asked
            messages = [{"role": "user", "content": question}]
            return client.chat.completions.create(model=model, messages=messages, **SAMPLING).choices[0].message.content

        asked = [(model, question) for question in QUESTIONS for model in MODELS]
        with ThreadPoolExecutor(len(asked)) as pool:
            together = dict(zip(asked, pool.map(answer, asked), strict=True))
        # Steps with more than half of the 8 slots taken: five of the six or all of them, whatever their adapters.
        half = real.metric('deepseek_r1_batch_utilization_bucket{le="0.5"}')
        assert real.metric("deepseek_r1_batch_utilization_count") > half
        assert {case: answer(case) for case in asked} == together
    for question in QUESTIONS:
        assert len({together[model, question] for model in MODELS}) == 3, "the adapters are felt"
    with DeepSeekModel.from_pretrained("default", memory="1500MiB", adapters=made) as model:
        for (name, question), text in together.items():
            assert model.chat([{"role": "user", "content": question}], model=name, **SAMPLING).text == text
        with pytest.raises(RequestError, match=r"no adapter 'three' \(adapters that are loaded: one, two\)"):
            model.generate("x", model="three")


def loading(*_: Any, **__: Any) -> None:
    raise InterruptedError


def test_an_adapters_bytes_count(made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as weights, before anything is loaded."""
    sizes = {"memory_bytes": 1500 << 20, "max_concurrent": 1}
    plain = load_engine(embedded(), **sizes)
    adapted = load_engine(embedded(), adapters=made, **sizes)
    assert adapted.adapters == ["one", "two"]
    more = adapted.weights_bytes - plain.weights_bytes
    # In float32 as in the files, and in bfloat16 as products read them: rows in panels of 64, columns in steps of 32.
    wanted = 0
    for folder in made.values():
        with safe_open(Path(folder) / "adapter_model.safetensors", "np") as file:
            for name in file.keys():
                rows, columns = file.get_slice(name).get_shape()
                wanted += 4 * rows * columns + 2 * -(-rows // 64) * 64 * -(-columns // 32) * 32
    assert more == wanted > 10 << 20
    fits = plain.weights_bytes + memory.FREE + (64 << 20)
    monkeypatch.setattr(build, "load_packed", loading)
    with pytest.raises(InterruptedError):
        load_engine(embedded(), memory_bytes=fits, max_concurrent=1)
    with pytest.raises(CapacityError, match="needs at least"):
        load_engine(embedded(), memory_bytes=fits, adapters={f"n{n}": made["two"] for n in range(9)}, max_concurrent=1)


def copied(folder: str, target: Path, **changes: Any) -> Path:
    """A copy of an adapter with other settings."""
    target.mkdir()
    for file in Path(folder).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    fields = json.loads((target / "adapter_config.json").read_text()) | changes
    (target / "adapter_config.json").write_text(json.dumps(fields))
    return target


def refused(tmp_path: Path, text: str) -> tuple[int, str]:
    """The exit code and the two lines of a server that was given the adapter `text`."""
    sizes = ("--memory", "1500MiB", "--port", "0")
    code, stderr, _ = refuse_to_start(tmp_path, *sizes, "--adapter", text)
    assert "Traceback" not in stderr
    error, remedy = stderr.splitlines()
    assert error.startswith("error: ") and len(remedy) > len("  mend: ") and remedy.startswith("  mend: ")
    return code, stderr


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    code, stderr = refused(tmp_path, f"poet={tmp_path / 'none'}")
    assert code == 1 and f"{tmp_path / 'none'}" in stderr and "give an adapter's folder" in stderr


def test_an_adapter_of_another_model(tmp_path: Path, models_folder: Path) -> None:
    decoder = load_decoder(tiny.save("llama", models_folder), parse_precision("fp32"), pack=True)
    config = LoraConfig(r=2)
    add_adapter(decoder, "other", config)
    folder = save_adapter(decoder, "other", tmp_path / "other", config, "tiny")
    code, stderr = refused(tmp_path, f"poet={folder}")
    assert code == 1 and str(folder) in stderr and "fits the model" in stderr and "over its own base model" in stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora is not built here"),
        ({"r": 8}, "fits the model"),
        ({"peft_type": "IA3"}, "peft_type is not LORA"),
    ],
)
def test_what_no_engine_loads(tmp_path: Path, made: dict[str, str], changes: dict[str, Any], words: str) -> None:
    folder = copied(made["one"], tmp_path / "changed", **changes)
    with pytest.raises(Exception, match=words) as caught:
        load_engine(embedded(), memory_bytes=1500 << 20, adapters={"poet": folder})
    assert str(folder) in caught.value.message and caught.value.remedy  # type: ignore[attr-defined]


def test_a_name_that_modules_have_a_meaning_for(tmp_path: Path, made: dict[str, str]) -> None:
    code, stderr = refused(tmp_path, f"train={made['one']}")
    assert code == 1 and f"'train' is no name for the adapter in {made['one']}" in stderr
