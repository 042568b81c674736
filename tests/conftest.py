from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

# Packed weights are kept on disk: those of a test run in a folder of its own, before anything reads the variable.
_cache = tempfile.TemporaryDirectory(prefix="deepseek-r1-tests")
os.environ["XDG_CACHE_HOME"] = _cache.name

import deepseek_r1  # noqa: E402, F401  before torch: it sets how long OpenMP threads spin

if other := os.environ.get("R1_TEST_NATIVE"):  # another build of the native kernels (tests/sanitize.sh)
    spec = importlib.util.spec_from_file_location("deepseek_r1.kernels._native", other)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models made by the tests lie; one folder for the whole run."""
    return tmp_path_factory.mktemp("models")
