"""Memory for packed weights: aligned for the kernels, on huge pages where the system has them, zeros at first."""

from __future__ import annotations

import mmap
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
HUGE = 2 << 20
_REGION = 64 * HUGE


class _Regions:
    """Hands out pieces of large mappings: a weight of its own mapping would share no huge page with its neighbours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._region: weakref.ref[np.ndarray] | None = None
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            region = None if self._region is None else self._region()
            if region is None or self._used + size > len(region):
                region = _map(max(_REGION, -(-size // HUGE) * HUGE))
                self._region, self._used = weakref.ref(region), 0
            piece = region[self._used : self._used + nbytes]
            self._used += size
        return torch.from_numpy(piece)  # keeps `piece`, and that the region, alive


def _map(nbytes: int) -> np.ndarray:
    """A new anonymous mapping that begins on a huge page's border."""
    # Private: memory that could be shared would get huge pages only where the system gives them to shared memory.
    mapping = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapping, dtype=np.uint8)
    start = -whole.ctypes.data % HUGE
    return whole[start : start + nbytes]


_regions = _Regions()


def zeros(nbytes: int) -> Tensor:
    """`nbytes` bytes (uint8) of zeros, aligned to 64 bytes. Pages take memory as they are written."""
    return _regions.take(nbytes)
