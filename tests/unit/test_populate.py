"""Memory of the KV pools is there before blocks are used, goes no further, and keeps what stands in it."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

import pytest
import torch
from torch import Tensor

from deepseek_r1.engine import populate
from deepseek_r1.engine.paged import KVCache
from deepseek_r1.layers.context import KVLayout

BLOCKS, SIZE = 4096, 16  # 4 KiB a block and layer


def resident(pool: Tensor) -> list[bool]:
    """By block: whether its memory is there. `pool` has one page a block, but for where its first page begins."""
    begin = pool.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    pages = (ctypes.c_ubyte * len(pool))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(len(pool) * mmap.PAGESIZE), pages) == 0
    return [bool(page & 1) for page in pages]


def wait() -> None:
    for _ in range(500):
        if not any(thread.name == "populate" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    raise AssertionError("the thread does not end")


@pytest.fixture
def cache() -> KVCache:
    return KVCache([KVLayout(1, 32, 32, torch.float32)] * 2, BLOCKS, SIZE)


def test_memory_is_there_ahead_and_no_further(cache: KVCache) -> None:
    pools = list(cache.pools.values())
    pools[0][5] = 7.0
    made = populate.Populate(pools)
    for used, there in ((0, 128), (100, 228), (90, 228), (3000, 3128), (BLOCKS, BLOCKS)):
        made.reach(used)
        wait()
        for pool in pools:
            pages = resident(pool)
            assert all(pages[: there - 1])
            # Huge pages hold 512 of ours; a pool may begin within one.
            assert there > BLOCKS - 1024 or sum(pages) <= there + 1024
    assert bool((pools[0][5] == 7.0).all()) and float(pools[1].sum()) == 0


def test_a_system_that_cannot_is_left_alone(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populate, "_POPULATE_WRITE", 9999)
    made = populate.Populate(list(cache.pools.values()))
    made.reach(0)
    made.reach(2000)
    wait()
    assert sum(resident(cache.pools[0])) <= 1024
    populate.Populate([]).reach(10)  # every layer keeps a ring or a state
