"""The recipe of R1-Lite at the size of a test: every part runs, goes on, and trains on nothing that is tested."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import r1_lite
from deepseek_r1.data.tasks.families import OUTSIDE
from deepseek_r1.evaluate.targets import ModelTarget
from support.r1_lite_folder import POLICIES, PROBLEMS, Refused, digest, evaluation, words


def test_the_whole_life_at_tiny_size(whole: Path, models_folder: Path) -> None:
    found = evaluation(whole)
    assert {row["name"] for row in found["rows"]} == set(POLICIES)
    families = {row["family"] for row in found["rows"]}
    assert {"chain_sum", *OUTSIDE} <= families and "all" not in families
    recipe = json.loads((whole / "rl" / "recipe.json").read_text())
    assert recipe["method"] == "grpo" and recipe["start_from"] == str(whole / "sft" / "result")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    assert len([path for path in before if path.parent.name == "result"]) == 3
    assert r1_lite.main(words(whole, models_folder, "--only", "rl")) == 0
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}, "nothing is done again"


def test_a_run_reports_itself(whole: Path) -> None:
    for run, name in (("sft", "loss"), ("rl", "pass_rate"), ("control", "loss")):
        text = (whole / run / "report.md").read_text()
        assert "| status | finished |" in text and f"report-{name}.svg" in text
        assert "## Evaluation" not in text and (whole / run / "report.html").stat().st_size > 1000


def test_nothing_is_trained_that_is_tested(tmp_path: Path) -> None:
    r1_lite.write_data(tmp_path / "train.jsonl", 0, 200)
    lines = [json.loads(line)["messages"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    found = json.loads((tmp_path / "data.json").read_text())
    assert len(lines) == found["examples"] > 50 and found["sha256"] == digest(tmp_path / "train.jsonl")
    tested = {" ".join(problem.question.casefold().split()) for problem in r1_lite.test_problems(200)}
    assert not tested & {" ".join(turns[0]["content"].casefold().split()) for turns in lines}
    assert all(turns[1]["content"].startswith("<think>\n") for turns in lines)


def test_as_many_problems_as_asked_for_inside_and_outside_and_none_twice() -> None:
    found = r1_lite.test_problems(200)
    outside = [problem for problem in found if problem.family in OUTSIDE]
    assert len(found) == len({problem.question for problem in found}) == 400 and len(outside) == 200
    assert {problem.family for problem in outside} == set(OUTSIDE)
    assert {problem.level for problem in found} == {0, 1, 2}
    assert {p.place for p in r1_lite.test_problems(50)} < {p.place for p in found}


def test_a_folder_keeps_to_what_it_was_begun_with(
    made: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "was begun with --seed 0, not 1" in refused(str(made), "--seed", "1", "--only", "data")
    monkeypatch.setattr(r1_lite, "SFT", r1_lite.SFT | {"lr": 5e-4})
    assert "holds a run with lr=0.001, not 0.0005" in refused(str(made), "--only", "sft")
    (made / "evaluation.json").write_text("[")
    assert "is not what this recipe writes" in refused(str(made), "--only", "report")
    (made / "evaluation.json").unlink()
    assert "has no evaluation.json" in refused(str(made / "nowhere"), "--only", "report")
    assert not (made / "nowhere").exists()
    assert "has no evaluation.json" in refused(str(made), "--only", "report")


@pytest.mark.parametrize(
    "given", [("--scale", "0"), ("--scale", "nan"), ("--scale", "x"), ("--problems", "0"), ("--only", "all")]
)
def test_words_that_make_no_sense(given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        r1_lite.main([str(tmp_path / "out"), *given])
    assert ended.value.code == 2 and f"argument {given[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


TRAINER = """#!/bin/sh
trap '' INT
trap 'touch "{folder}/told"' TERM
echo $$ > "{folder}/began"
sleep 1
echo saved > "{folder}/saved"
exit 130
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_is_let_save(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that takes its time to save. A terminal tells it of Ctrl-C itself, a kill the recipe has to hand on."""
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER.format(folder=tmp_path))
    trainer.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(trainer))

    def interrupt() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        r1_lite.main([str(tmp_path / "out"), "--only", "sft"])
    thread.join()
    assert ended.value.code == 130 and (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "told").exists() == (number == signal.SIGTERM)


def test_a_training_that_is_killed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tmp_path / "trainer"
    trainer.write_text("#!/bin/sh\nkill -9 $$\n")
    trainer.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(trainer))
    with pytest.raises(SystemExit) as ended:
        r1_lite.main([str(tmp_path / "out"), "--only", "sft"])
    assert ended.value.code == 137
    assert capsys.readouterr().err == "the training was ended by signal 9; the same command goes on\n"


def test_ctrl_c_in_an_evaluation_ends_with_one_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: ModelTarget, asks: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelTarget, "answers", interrupted)
    shutil.rmtree(made / "evaluation")
    assert r1_lite.main([str(made), "--only", "evaluate", "--problems", str(PROBLEMS)]) == 130
    first, last = capsys.readouterr().err.splitlines()
    assert json.loads(first)["done"] == 0 and last == "interrupted; the same command goes on from there"
