from __future__ import annotations

from pathlib import Path

import pytest

import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models made by the tests lie; one folder for the whole run."""
    return tmp_path_factory.mktemp("models")
