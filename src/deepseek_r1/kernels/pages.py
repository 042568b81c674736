"""Memory that kernels read: aligned, zeros at first, on huge pages where they pay."""

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
    """Hands out pieces of large mappings. Weights lie there until they are mapped from the packed cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._region: weakref.ref[np.ndarray] | None = None
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            region = None if self._region is None else self._region()
            if region is None or self._used + size > len(region):
                region = _map(max(_REGION, size))
                self._region, self._used = weakref.ref(region), -region.ctypes.data % ALIGNMENT
            piece = region[self._used : self._used + nbytes]  # its base is the region, which it keeps alive
            self._used += size
        return torch.from_numpy(piece)


def _map(nbytes: int) -> np.ndarray:
    """A new anonymous mapping. Private: the system gives huge pages to that, seldom to memory that could be shared."""
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)


_regions = _Regions()


def zeros(nbytes: int) -> Tensor:
    """`nbytes` bytes (uint8) of zeros, aligned to 64 bytes. Pages take memory as they are written."""
    return _regions.take(nbytes)


def huge(nbytes: int) -> Tensor:
    """The same in a mapping of its own, on huge pages where the system has them."""
    mapping = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapping, dtype=np.uint8)
    start = -whole.ctypes.data % HUGE  # a huge page's border
    return torch.from_numpy(whole[start : start + nbytes])
