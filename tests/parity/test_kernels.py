"""Packed products equal torch's linear, a row's bits don't depend on its batch, and memory doesn't grow with shapes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.kernels import ops, reference

GROWTH = """
import os, deepseek_r1, torch
from deepseek_r1.core.environment import process_pss
from deepseek_r1.kernels.ops import PackedWeight
weights = [PackedWeight(torch.randn(n, k)) for n, k in ((576, 576), (1536, 576), (576, 1536))]
def run():
    for rows in range(1, 257):
        for weight in weights:
            weight.linear(torch.randn(rows, weight.in_features), None)
run()
before = process_pss(os.getpid())
run()
run()
print((process_pss(os.getpid()) - before) >> 20)
"""


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 300), shape=st.sampled_from([(5, 7), (48, 112), (112, 48), (320, 48)]), bias=st.booleans())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_plain(dtype: torch.dtype, rows: int, shape: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(shape, generator=generator).to(dtype)
    x = torch.randn(rows, shape[1], generator=generator).to(dtype)
    offset = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    got = ops.linear(x, ops.PackedWeight(weight), offset)
    want = reference.linear(x.double(), weight.double(), None if offset is None else offset.double())
    assert got.shape == want.shape and got.dtype == dtype
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    assert ((got - want).abs() <= tolerance * (want.abs() + shape[1] ** 0.5)).all()


@pytest.mark.parametrize("shape", [(576, 576), (960, 576), (576, 1536), (3072, 576)])
def test_a_rows_bits_do_not_depend_on_its_batch(shape: tuple[int, int]) -> None:
    weight = ops.PackedWeight(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(256, shape[1], generator=torch.Generator().manual_seed(2))
    whole = ops.linear(x, weight)
    for rows in (1, 2, 3, 5, 8, 17, 33, 64, 100, 255):
        assert torch.equal(ops.linear(x[:rows], weight), whole[:rows]), rows


def test_memory_does_not_grow_with_the_shapes_met() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 24, "MiB, after all row counts were seen once"
