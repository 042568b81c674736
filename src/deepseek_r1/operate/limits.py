"""The machine's own limits, measured: read bandwidth of all threads, operations per second of each number format."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deepseek_r1.core.errors import DeepSeekError, UnsupportedError
from deepseek_r1.operate.doctor import copy_bandwidth

FORMATS = ("int8", "bf16", "fp32")
PROBE_SECONDS = 0.25


@dataclass(frozen=True)
class Limits:
    """`bandwidth` in bytes read per second, `peaks` in operations (a multiply-add is two) per second by format."""

    bandwidth: float
    peaks: dict[str, float]


def measure_limits(seconds: float = 1.0) -> Limits:
    """Measure every limit for `seconds` each with the native kernels. Raises `UnsupportedError` without them."""
    native = _native()
    if native is None:
        raise UnsupportedError(
            "the machine's peaks can't be measured: the native kernels are not there",
            remedy="install a C++ compiler (Debian: apt-get install g++) and install this package again",
        )
    peak, read_bandwidth = native
    return Limits(read_bandwidth(seconds), {name: peak(name, seconds) for name in FORMATS})


def bandwidth_probe() -> tuple[str, Callable[[], float]]:
    """How memory bandwidth is probed here, in words, and the probe itself (bytes/s): native reads, else copies."""
    native = _native()
    if native is None:
        return "memory copied by all cores, bytes read plus written", lambda: copy_bandwidth(PROBE_SECONDS)
    _, read_bandwidth = native
    return "memory read by all cores", lambda: read_bandwidth(PROBE_SECONDS)


def _native() -> tuple[Callable[[str, float], float], Callable[[float], float]] | None:
    """`ops.peak` and `ops.read_bandwidth`, None where there is no native module behind them."""
    ops: Any = importlib.import_module("deepseek_r1.kernels.ops")
    try:
        ops.read_bandwidth(0.001)
        return ops.peak, ops.read_bandwidth
    except (AttributeError, DeepSeekError):
        return None
