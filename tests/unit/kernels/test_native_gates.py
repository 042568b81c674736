"""Products that end in a gate, and products of long rows: the numbers of the plain ones, to the bit."""

from __future__ import annotations

import pytest
import torch

from deepseek_r1.kernels import native, ops
from deepseek_r1.kernels.packed import PackedWeight
from deepseek_r1.kernels.quantised import quantise
from support.native_paths import PATHS, bits, native_path


def weight(rows: int, columns: int, width: int, group: int, *, multiples: bool = False) -> PackedWeight:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    return PackedWeight([quantise(values, width, group, multiples=multiples)])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("path", PATHS)
def test_a_gated_product_is_a_product_and_a_gate(path: str, activation: str) -> None:
    bias = torch.randn(256, generator=torch.Generator().manual_seed(2))
    with native_path(path):
        for width, group, multiples in (
            *((4, 32, False), (4, 32, True), (4, 128, False), (8, 32, False), (8, 128, False)),
            (8, 160, False),  # a scale by row
        ):
            packed = weight(256, 160, width, group, multiples=multiples)
            assert packed.fuses_gate == (path == "amx")
            for rows, given in ((1, None), (3, bias), (5, bias), (16, None), (17, bias), (70, bias), (300, None)):
                x = torch.randn(rows, 160, generator=torch.Generator().manual_seed(rows))
                whole = ops.linear(x, packed, given)
                want = ops.gated(activation, whole[:, :128], whole[:, 128:])
                found = ops.gated_linear(activation, x, packed, given, torch.float32)
                assert torch.equal(bits(found), bits(want)), (width, group, rows)


def test_a_gate_lets_gradients_through() -> None:
    packed = weight(128, 64, 4, 32)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found = ops.gated_linear("silu", x, packed, None, torch.float32)
    with torch.no_grad():
        assert torch.equal(bits(ops.gated_linear("silu", x, packed, None, torch.float32)), bits(found.detach()))
    values = packed.rows(torch.arange(128)).double()
    wide = x.detach().double().requires_grad_()
    gate, up = (wide @ values.t()).split(64, 1)
    want = torch.autograd.grad((torch.nn.functional.silu(gate) * up).sum(), wide)[0]
    error = torch.autograd.grad(found.sum(), x)[0].double() - want
    assert error.norm() < 0.02 * want.norm()  # multiplied in bfloat16


@pytest.mark.skipif("amx" not in PATHS, reason="the processor has no AMX")
def test_what_has_no_gate_is_refused() -> None:
    x, out = torch.zeros(2, 64), torch.zeros(2, 64)
    with native_path("amx"):
        for packed in (weight(192, 64, 4, 32), PackedWeight([torch.zeros(128, 64)])):
            assert not packed.fuses_gate
            with pytest.raises(ValueError, match="no gate"):
                native.library.linear(packed._native, x.data_ptr(), False, 2, 64, 0, 0, 0, out.data_ptr(), False, 64, 0)
        with pytest.raises(ValueError, match="no gate"):
            packed = weight(128, 64, 4, 32)
            native.library.linear(packed._native, x.data_ptr(), False, 2, 64, 0, 0, 0, out.data_ptr(), False, 64, 2)


@pytest.mark.parametrize("path", PATHS)
def test_long_rows_have_the_bits_of_single_ones(path: str) -> None:
    """So long that many of them leave the second cache, and four panels share a part of each."""
    x = torch.randn(270, 9000, generator=torch.Generator().manual_seed(4))
    with native_path(path):
        for packed in (
            weight(450, 9000, 4, 32),
            weight(450, 9000, 4, 32, multiples=True),
            weight(450, 9000, 8, 9000),
            PackedWeight([torch.randn(450, 9000).bfloat16()]),
        ):
            if path in ("generic", "avx2"):
                x = x[:40]
            whole = ops.linear(x, packed)
            for row in (0, 16, 39, len(x) - 1):
                assert torch.equal(bits(ops.linear(x[row : row + 1], packed)), bits(whole[row : row + 1]))
            assert torch.equal(bits(ops.linear(x[:33], packed)), bits(whole[:33]))
