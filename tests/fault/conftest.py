from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepseek_r1.cli.main import main
from support.small_runs import Refused, Settings, settings, words


@pytest.fixture
def given(tmp_path: Path, models_folder: Path) -> Settings:
    return {
        **settings("sft-adapter", tmp_path, models_folder),
        "steps": 4,
        "accumulate": 1,
        "out": str(tmp_path / "run"),
    }


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Start a run that must fail with one error and no traceback; what it said on stderr."""

    def start(given: Settings, code: int, message: str) -> str:
        capsys.readouterr()
        assert main(["train", *words(given)]) == code
        told = capsys.readouterr()
        assert re.search(rf"^error: .*{message}", told.err, re.MULTILINE), told.err
        assert told.err.count("error: ") == 1 and "Traceback" not in told.err and "defect" not in told.err
        assert told.out == ""
        return told.err

    return start
