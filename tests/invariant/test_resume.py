"""A run that is killed and started again ends with the weights, and the figures, of one that never was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from deepseek_r1.train.run import prepare
from support.small_runs import KINDS, config_of, killed_run, outcome, settings


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_pieces_is_the_whole_run(kind: str, tmp_path: Path, models_folder: Path) -> None:
    """Stopped after each step and prepared again from its folder."""
    given = settings(kind, tmp_path, models_folder)
    whole = prepare(config_of(given, tmp_path / "whole"))
    lines = list(whole.train())
    assert whole.finished and len(lines) == given["steps"]
    pieces = 0
    while True:
        run = prepare(config_of(given, tmp_path / "pieces"))
        assert run.resumed_at == pieces
        if run.finished:
            break
        steps = iter([False])
        for _ in run.train(lambda steps=steps: next(steps, True)):
            pieces += 1
    list(run.train())
    assert pieces == given["steps"]
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


def test_kill_9_changes_nothing(tmp_path: Path, models_folder: Path) -> None:
    given = settings("sft-adapter", tmp_path, models_folder)
    list(prepare(config_of(given, tmp_path / "whole")).train())
    kills = killed_run(given, tmp_path / "killed", random.Random(1))
    assert kills >= 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
