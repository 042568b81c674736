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

BLOCKS, SIZE = 4096, 16


def resident(pool: Tensor) -> list[bool]:
    """By block: whether its memory is there."""
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
def pools() -> list[Tensor]:
    """As the engine's, but never of memory that something else had: a page of 4 KiB a block."""
    maps = [mmap.mmap(-1, BLOCKS * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    return [torch.frombuffer(each, dtype=torch.float32).view(BLOCKS, SIZE, -1) for each in maps]


def test_memory_is_there_ahead_and_no_further(pools: list[Tensor]) -> None:
    pools[0][5] = 7.0
    made = populate.Populate(pools)
    for used, there in ((0, 128), (100, 228), (90, 228), (3000, 3128), (BLOCKS, BLOCKS)):
        made.reach(used)
        wait()
        for pool in pools:
            pages = resident(pool)
            assert all(pages[: there - 1])
            assert sum(pages) <= there + 512, "but for a huge page, where the system gives them unasked"
    assert bool((pools[0][5] == 7.0).all()) and float(pools[1].sum()) == 0


def test_a_system_that_cannot_is_left_alone(pools: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populate, "_POPULATE_WRITE", 9999)
    made = populate.Populate(pools)
    made.reach(0)
    made.reach(2000)
    wait()
    assert sum(resident(pools[0])) <= 512
    populate.Populate([]).reach(10)  # every layer keeps a ring or a state
