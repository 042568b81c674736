from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.config.train import METHODS, TrainConfig
from deepseek_r1.models.adapters import read_adapter_config
from support.small_model import small_model, write_chats
from support.small_runs import figures, words

FOLDER = Path(__file__).resolve().parents[3] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
SMALL = {
    "sft": {"max_length": 160, "batch_tokens": 160},
    "distill": {"max_length": 160, "batch_tokens": 160},
    "grpo": {"prompts": 2, "group": 3, "answer_tokens": 8, "max_length": 160, "batch_tokens": 512},
}


def test_there_is_one_for_each_method() -> None:
    assert sorted(tomllib.loads(path.read_text())["method"] for path in RECIPES) == sorted(METHODS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_setting_exists_and_means_something(path: Path) -> None:
    given = tomllib.loads(path.read_text())
    config = TrainConfig.from_file(path)
    assert set(given) <= {spec.name for spec in TrainConfig.options()}
    assert {name: value for name, value in config.to_dict().items() if name in given} == given
    other = set(METHODS) - {config.method}
    for spec in TrainConfig.options():
        if spec.help.partition(":")[0] in other:
            assert spec.name not in given, "a setting of another method changes nothing"
    assert config.out.startswith("runs/")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_first_lines_say_how_to_run_it(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    (line,) = re.findall(rf"deepseek-r1 train recipes/{path.name} ([^-\n]+)$", head, re.MULTILINE)
    names = [word.partition("=")[0] for word in line.split() if "=" in word]
    assert "out" in names and set(names) <= {spec.name for spec in TrainConfig.options()}
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_trains(path: Path, tmp_path: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tomllib.loads(path.read_text())
    method, model, out = recipe["method"], small_model(models_folder), tmp_path / "run"
    given: dict[str, Any] = SMALL[method] | {"model": model, "out": out, "steps": 2}
    if method != "grpo":
        given["data"] = write_chats(tmp_path / "chats.jsonl")
    if method == "distill":
        given["teacher"] = model
    assert main(["train", str(path), *words(given)]) == 0
    assert capsys.readouterr().out == f"{out}/result\n"
    lines = figures(out)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["bad_steps"] == 0 for line in lines)
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert read_adapter_config(out / "result").r == recipe["lora_r"]
