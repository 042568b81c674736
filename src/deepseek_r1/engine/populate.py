"""Memory of the KV pools, asked of the system before a step needs it.

A page that is written for the first time is made, and zeroed, while the step waits: on virtual machines whose host has
to find the memory too that was a quarter of a short prompt's time.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence as Items

from torch import Tensor

AHEAD_TOKENS = 2048
"""Room that is made beyond the blocks that were ever in use."""

_POPULATE_WRITE = 23  # see madvise(2); since Linux 5.14
_AT_ONCE = 32  # blocks


class Populate:
    """Makes room for `AHEAD_TOKENS` behind the highest block in use, in a thread that ends when that is there.

    `pools` are (blocks, block size, width). Their content stays as it is. Elsewhere than on Linux nothing is done.
    """

    def __init__(self, pools: Items[Tensor]) -> None:
        self._pools = pools
        self._blocks = min((len(pool) for pool in pools), default=0)
        self._there = self._wanted = 0
        self._lock = threading.Lock()
        self._running = False

    def reach(self, blocks: int) -> None:
        """Say that the first `blocks` blocks have been in use."""
        if not self._blocks:
            return
        wanted = min(self._blocks, blocks + AHEAD_TOKENS // self._pools[0].shape[1])
        if wanted <= self._wanted:
            return
        with self._lock:
            self._wanted = wanted
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="populate", daemon=True).start()

    def _run(self) -> None:
        madvise = getattr(ctypes.CDLL(None), "madvise", None)
        while madvise is not None:
            with self._lock:
                first, last = self._there, min(self._there + _AT_ONCE, self._wanted)
                self._running = first < last
            if first == last:
                return
            for pool in self._pools:
                size = pool.stride(0) * pool.element_size()
                begin = (pool.data_ptr() + first * size) // mmap.PAGESIZE * mmap.PAGESIZE
                count = pool.data_ptr() + last * size - begin
                if madvise(ctypes.c_void_p(begin), ctypes.c_size_t(count), _POPULATE_WRITE):
                    return  # an older system, or no memory left: steps make their pages as they go
            self._there = last
