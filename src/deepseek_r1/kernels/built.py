"""Whether the native kernels will be used, found out without importing torch: memory is planned before it is loaded."""

from __future__ import annotations

import importlib.util
import os

SWITCH = "DEEPSEEK_R1_KERNELS"
"""Environment variable that names the path: auto (the best), avx512, avx2, generic, or torch (no native kernels)."""


def native_kernels() -> bool:
    """Whether the extension module is there and not switched off."""
    return (
        os.environ.get(SWITCH, "auto") != "torch"
        and importlib.util.find_spec("deepseek_r1.kernels._native") is not None
    )
