"""The recipe of R1-Lite at the size of a test: every part runs, goes on, and trains on nothing that is tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.small_model import small_model

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes"))

import r1_lite


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r1_lite, "EXAMPLES", {1: 6, 2: 3, 3: 2, 4: 1})
    monkeypatch.setattr(r1_lite, "ANSWER_TOKENS", 8)
    small: dict[str, Any] = {"answer_tokens": 8, "prompts": 2, "group": 2, "most_rounds": 1, "batch_tokens": 1024}
    monkeypatch.setattr(r1_lite, "RL", r1_lite.RL | small)
    monkeypatch.setattr(r1_lite, "ADAPTER", r1_lite.ADAPTER | {"lora_r": 2})
    monkeypatch.setattr(r1_lite, "SFT", r1_lite.SFT | {"max_length": 1024})


def test_the_whole_life_at_tiny_size(
    tiny: None, tmp_path: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--model", str(small_model(models_folder)), "--scale", "0.004", "--problems", "12"]
    assert r1_lite.main(words) == 0
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"base", "sft", "rl", "control"}
    families = {row["family"] for row in rows}
    assert {"chain_sum", "calendar_arithmetic", "letter_counting"} <= families
    assert "control" in table and "letter_counting" in table
    for name in ("sft", "rl", "control"):
        assert (tmp_path / name / "result" / "adapter_model.safetensors").exists()
    recipe = json.loads((tmp_path / "rl" / "recipe.json").read_text())
    assert recipe["method"] == "grpo" and recipe["start_from"] == str(tmp_path / "sft" / "result")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert r1_lite.main([*words, "--only", "rl"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}, (
        "nothing is done again"
    )


def test_nothing_is_trained_that_is_tested(tiny: None, tmp_path: Path) -> None:
    found = r1_lite.write_data(tmp_path / "train.jsonl", 0, 200)
    lines = [json.loads(line)["messages"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(lines) == found["examples"] > 50
    tested = {" ".join(problem.question.casefold().split()) for problem in r1_lite.test_problems(200)}
    assert not tested & {" ".join(turns[0]["content"].casefold().split()) for turns in lines}
    assert all(turns[1]["content"].startswith("<think>\n") for turns in lines)
