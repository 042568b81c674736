from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Packed weights are kept on disk: those of a test run in a folder of its own, before anything reads the variable.
_cache = tempfile.TemporaryDirectory(prefix="deepseek-r1-tests")
os.environ["XDG_CACHE_HOME"] = _cache.name

import deepseek_r1  # noqa: E402, F401  before torch: it sets how long OpenMP threads spin


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models made by the tests lie; one folder for the whole run."""
    return tmp_path_factory.mktemp("models")
