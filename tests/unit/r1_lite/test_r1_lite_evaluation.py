"""What R1-Lite's policies can do: who is asked again, and figures beside an independent count."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r1_lite
import r1_lite_evaluation
import r1_lite_report
from deepseek_r1.evaluate.targets import ModelTarget
from support.r1_lite_folder import POLICIES, PROBLEMS, Refused, answers, digest, evaluation, scored, words


def test_a_policy_that_was_asked_is_not_asked_again(
    made: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = evaluation(made)
    asked: list[int] = []
    real = ModelTarget.answers

    def count(self: ModelTarget, asks: Any) -> Any:
        asked.append(len(asks))
        return real(self, asks)

    monkeypatch.setattr(ModelTarget, "answers", count)
    again = words(made, models_folder, "--only", "evaluate")
    monkeypatch.setattr(r1_lite_evaluation, "load_target", None)
    assert r1_lite.main(again) == 0, "no model is loaded"
    monkeypatch.undo()
    monkeypatch.setattr(r1_lite, "ANSWER_TOKENS", 8)
    monkeypatch.setattr(ModelTarget, "answers", count)
    assert asked == []
    (made / "evaluation" / "rl.json").unlink()
    journal = made / "evaluation" / "rl" / "answers.jsonl"
    # A copied folder's adapter has another path, which is part of what an answer is kept by.
    assert r1_lite.main(again) == 0 and asked == [2 * PROBLEMS]
    lines = journal.read_text().splitlines(keepends=True)[-2 * PROBLEMS :]
    journal.write_text("".join(lines[:-5]))
    (made / "evaluation" / "rl.json").unlink()
    capsys.readouterr()
    assert r1_lite.main(again) == 0 and asked == [2 * PROBLEMS, 5]
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["policy"] for line in told} == {"rl"} and told[-1]["done"] == told[-1]["total"] == 2 * PROBLEMS
    assert evaluation(made)["rows"] == before["rows"] and evaluation(made)["totals"] == before["totals"]
    with (made / "rl" / "result" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x01\x00")
    assert r1_lite.main(again) == 0 and asked == [2 * PROBLEMS, 5, 2 * PROBLEMS], "other weights are asked anew"


def wilson(right: float, n: int) -> tuple[float, float]:
    """The roots p of (right / n - p)^2 = z^2 p (1 - p) / n."""
    z, share = 1.959963984540054, right / n
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_totals_are_those_of_an_independent_count() -> None:
    scores = np.random.default_rng(5).integers(0, 2, 300)
    rows = r1_lite_evaluation.totals("rl", scored(list(scores)))
    found = {(row["group"], row["level"]): row for row in rows}
    parts = {("trained families", 1): scores[0::3], ("trained families", 2): scores[1::3]}
    parts[("outside families", None)] = scores[2::3]
    parts[("trained families", None)] = np.concatenate([scores[0::3], scores[1::3]])
    assert set(found) == set(parts)
    for kind, part in parts.items():
        row = found[kind]
        assert row["n"] == len(part) and row["mean"] == pytest.approx(part.mean())
        assert (row["low"], row["high"]) == pytest.approx(wilson(part.sum(), len(part)))


def test_the_difference_is_paired() -> None:
    random = np.random.default_rng(6)
    one, other = random.integers(0, 2, 3000), random.integers(0, 2, 3000)
    other[:2700] = one[:2700]
    rows = r1_lite_evaluation.differences(scored(list(one)), scored(list(other)))
    for row, picked in zip(rows, (np.arange(3000) % 3 < 2, np.arange(3000) % 3 == 2), strict=True):
        found = (one - other)[picked]
        assert row["n"] == len(found) and row["mean"] == pytest.approx(found.mean())
        assert (row["better"], row["worse"]) == ((found > 0).sum(), (found < 0).sum())
        half = 1.96 * found.std() / math.sqrt(len(found))
        assert row["low"] == pytest.approx(found.mean() - half, abs=0.15 * half)
        assert row["high"] == pytest.approx(found.mean() + half, abs=0.15 * half)
    with pytest.raises(ValueError, match="is not"):
        r1_lite_evaluation.differences(scored([1, 0]), scored([1, 0])[::-1])


def test_the_verdict_follows_the_interval() -> None:
    row = {"group": "trained families", "n": 500, "better": 9, "worse": 5, "mean": 0.008}
    said = [
        r1_lite_report.verdicts({"differences": [row | {"low": low, "high": high}]})[0]
        for low, high in ((0.001, 0.02), (0.0, 0.02), (-0.02, -0.001))
    ]
    assert ["RL beats the SFT-only" in each for each in said] == [True, False, False]
    assert ["does not beat" in each for each in said] == [False, True, True]
    assert "it is worse" in said[2] and "+0.8 points (+0.1 to +2.0, 95 %" in said[0]


def test_the_evaluation_says_what_was_run(whole: Path) -> None:
    found = evaluation(whole)
    for policy in POLICIES:
        given = answers(whole, policy)
        groups = [total for total in found["totals"] if total["name"] == policy and total["level"] is None]
        assert [total["n"] for total in groups] == [PROBLEMS, PROBLEMS]
        assert sum(total["mean"] * total["n"] for total in groups) == pytest.approx(sum(a["score"] for a in given))
    assert [(row["group"], row["n"]) for row in found["differences"]] == [
        ("trained families", PROBLEMS),
        ("outside families", PROBLEMS),
    ]
    for name, run in found["runs"].items():
        lines = [json.loads(line) for line in (whole / name / "metrics.jsonl").read_text().splitlines()]
        assert run["seconds"] == pytest.approx(sum(line["seconds"] for line in lines)) and run["steps"] == len(lines)
        assert run["adapter_sha256"] == digest(whole / name / "result" / "adapter_model.safetensors")
        assert run["data_digest"] == json.loads((whole / name / "run.json").read_text())["data_digest"]
    assert {name: run["start_from"] for name, run in found["runs"].items()} == {
        "sft": None,
        "rl": "sft",
        "control": "sft",
    }
    assert (found["seed"], found["scale"]) == (0, 0.004) and found["machine"]["cpu_count"] > 0
    assert found["versions"]["torch"] and found["versions"]["reasoning-gym"] and found["path"]
    for name in ("evaluation.json", "report.md", "README.md", "report.html"):
        assert str(whole) not in (whole / name).read_text(), "nothing of the machine's folders"


def test_tested_questions_in_the_training_data_are_refused(made: Path, refused: Refused) -> None:
    question = r1_lite.test_problems(PROBLEMS)[0].question
    with (made / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": question.upper()}]}) + "\n")
    told = refused(str(made), "--only", "evaluate", "--problems", str(PROBLEMS))
    assert "1 test questions are in" in told
