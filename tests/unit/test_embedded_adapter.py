"""The adapter of the embedded default model: which models have it, who gets it, and what is said of damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_r1.cli.opened import open_model
from deepseek_r1.config.chat import ChatConfig
from deepseek_r1.config.generate import GenerateConfig
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models import embedded
from deepseek_r1.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from deepseek_r1.models.locate import locate_model
from deepseek_r1.serve.app import with_embedded_adapter
from deepseek_r1.serve.local import DeepSeekModel

GIVEN = f"{embedded.NAME}={embedded.FOLDER}"
SUM = [{"role": "user", "content": "What is 17 + 26?"}]


def test_the_default_model_alone_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert embedded.embedded_adapter("default") == ("r1-lite", embedded.FOLDER)
    for other in ("x.gguf", "owner/name", str(locate_model("default"))):
        assert embedded.embedded_adapter(other) is None
    monkeypatch.setattr(embedded, "FOLDER", tmp_path / "none")
    assert embedded.embedded_adapter("default") is None
    assert with_embedded_adapter(ServeConfig()) == ServeConfig()


def test_it_ships_with_the_package() -> None:
    assert embedded.FOLDER.parent == Path(embedded.__file__).parent
    sizes = {name: (embedded.FOLDER / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE)}
    assert 0 < sizes[CONFIG_FILE] < 2000
    assert 1 << 20 < sizes[WEIGHTS_FILE] < 10 * 10**6


def test_the_server_loads_it_and_it_answers() -> None:
    config = with_embedded_adapter(ServeConfig(port=9000, api_key="key"))
    assert config == ServeConfig(port=9000, api_key="key", adapter=[GIVEN], default_adapter="r1-lite")
    assert config.adapters == {"r1-lite": str(embedded.FOLDER)}


@pytest.mark.parametrize(
    "config",
    [
        ServeConfig(model="x.gguf"),
        ServeConfig(adapter=["none"]),
        ServeConfig(adapter=["poet=poems"]),
        ServeConfig(adapter=["poet=poems"], default_adapter="poet"),
        ServeConfig(model="owner/name", adapter=["poet=poems"]),
    ],
    ids=["other model", "none", "own", "own default", "other model's own"],
)
def test_who_chooses_gets_what_was_chosen(config: ServeConfig) -> None:
    assert with_embedded_adapter(config) == config


def test_chat_and_generate_answer_with_it() -> None:
    """The real model: it thinks with its adapter, and answers at once without."""
    model, config = open_model(ChatConfig(temperature=0, memory="1500MiB", max_tokens=60))  # type: ignore[arg-type]
    with model:
        assert config.adapters == {"r1-lite": str(embedded.FOLDER)}
        answer = model.chat(SUM, **config.sampling)
        assert answer.text.strip() and answer.reasoning.strip().endswith(answer.text.strip())
        whole = model.generate(model.tokenizer.apply_chat_template(SUM), **config.sampling)
        assert whole.token_ids == answer.token_ids and whole.text.startswith("<think>")
    asked = GenerateConfig(adapter="none", temperature=0, memory="1500MiB", max_tokens=12)  # type: ignore[arg-type]
    base, same = open_model(asked)
    with base:
        assert same == asked
        bare = base.chat(SUM, **same.sampling)
        assert bare.reasoning == "" and bare.text != answer.text
    with DeepSeekModel.from_pretrained("default", memory="1500MiB") as plain:
        assert plain.chat(SUM, temperature=0, max_tokens=12).token_ids == bare.token_ids, "Python has the model alone"


def cut_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1000])


def no_json(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")


def other_rank(folder: Path) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))


DAMAGES = [
    (cut_weights, WEIGHTS_FILE),
    (no_json, CONFIG_FILE),
    (other_rank, WEIGHTS_FILE),
    (lambda folder: (folder / CONFIG_FILE).unlink(), CONFIG_FILE),
]


@pytest.mark.parametrize(("damage", "file"), DAMAGES, ids=["cut", "no JSON", "other rank", "missing"])
def test_damaged_files_are_named(
    damage: Callable[[Path], None], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r1_lite"
    shutil.copytree(embedded.FOLDER, folder)
    damage(folder)
    monkeypatch.setattr(embedded, "FOLDER", folder)
    with pytest.raises(CheckpointError) as caught:
        open_model(GenerateConfig(memory="1500MiB"))  # type: ignore[arg-type]
    assert str(folder / file) in caught.value.message
