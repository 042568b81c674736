"""The thread pool: every item exactly once, results that don't depend on threads, and no core kept busy for nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

from deepseek_r1.kernels import native, ops

WEIGHT = ops.PackedWeight(torch.randn(640, 96, generator=torch.Generator().manual_seed(3)))


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = native.library.threads()
    yield
    native.library.set_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(4))
    want = ops.linear(x, WEIGHT)
    native.library.set_threads(threads)
    assert native.library.threads() == threads
    for _ in range(200):
        assert torch.equal(ops.linear(x, WEIGHT), want)


def test_callers_on_several_threads_take_turns() -> None:
    native.library.set_threads(2)
    inputs = [torch.randn(20, 96, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    wants = [ops.linear(x, WEIGHT) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(150):
            if not torch.equal(ops.linear(inputs[i], WEIGHT), wants[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert wrong == []


def test_idle_threads_sleep() -> None:
    native.library.set_threads(4)
    ops.linear(torch.randn(64, 96), WEIGHT)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05, "seconds of CPU in half a second of doing nothing"


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    code = """
import os, torch
from deepseek_r1.kernels import ops, native
native.library.set_threads(2)
w = ops.PackedWeight(torch.ones(640, 96)); x = torch.ones(40, 96)
want = ops.linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.linear(x, w), want) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def test_hostile_numbers_raise() -> None:
    for threads in (0, -1, 100_000):
        with pytest.raises(ValueError):
            native.library.set_threads(threads)
