"""The extension module, without importing torch: memory is planned before that is loaded."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

from deepseek_r1.core.errors import ConfigError

SWITCH = "DEEPSEEK_R1_KERNELS"
"""Environment variable that names the path: auto (the best), amx, avx512, avx2, generic; or torch: no kernels."""


def native_kernels() -> bool:
    """Whether the extension module is there and not switched off."""
    return (
        os.environ.get(SWITCH, "auto") != "torch"
        and importlib.util.find_spec("deepseek_r1.kernels._native") is not None
    )


REBUILD = "install a C++20 compiler (Debian: apt-get install g++), then run make clean && make"


@functools.cache
def load() -> Any:
    """The extension module with its path chosen; None where it is not built, or not wanted."""
    wanted = os.environ.get(SWITCH, "auto")
    if wanted == "torch":
        return None
    try:
        module = importlib.import_module("deepseek_r1.kernels._native")
    except ImportError:
        if wanted != "auto":
            raise ConfigError(f"{SWITCH}={wanted}: the native kernels are not built", remedy=REBUILD) from None
        return None
    try:
        module.choose(wanted)
    except ValueError as error:
        raise ConfigError(f"{SWITCH}={wanted}: {error}", remedy=f"unset {SWITCH}") from None
    return module


def path_name() -> str:
    """Name of the instruction-set path: "torch" without native kernels."""
    module = load()
    return "torch" if module is None else str(module.path())
