from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.r1_lite_folder import PROBLEMS, Refused, words

sys.path.append(str(Path(__file__).resolve().parents[3] / "recipes"))

import r1_lite
import r1_lite_card


@pytest.fixture(scope="package", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r1_lite, "EXAMPLES", {1: 6, 2: 3, 3: 2, 4: 1})
        patch.setattr(r1_lite, "ANSWER_TOKENS", 8)
        small: dict[str, Any] = {"answer_tokens": 8, "prompts": 2, "group": 2, "most_rounds": 1, "batch_tokens": 1024}
        patch.setattr(r1_lite, "RL", r1_lite.RL | small)
        patch.setattr(r1_lite, "ADAPTER", r1_lite.ADAPTER | {"lora_r": 2})
        patch.setattr(r1_lite, "SFT", r1_lite.SFT | {"max_length": 1024})
        patch.setattr(r1_lite_card, "LEAST_PROBLEMS", PROBLEMS)
        yield


@pytest.fixture(scope="package")
def whole(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all parts but publishing are done."""
    out = tmp_path_factory.mktemp("r1") / "lite"
    assert r1_lite.main(words(out, models_folder)) == 0
    return out


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(whole, tmp_path / "made")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def start(*given: str) -> str:
        capsys.readouterr()
        assert r1_lite.main(given) == 2
        return capsys.readouterr().err

    return start
