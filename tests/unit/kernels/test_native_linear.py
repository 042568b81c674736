"""Packed products of every format on every path: equal to their definition, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_r1.kernels import native, ops, pages
from deepseek_r1.kernels.packed import PackedWeight
from deepseek_r1.kernels.quantised import QuantisedWeight
from support.native_paths import PATHS, bits, native_path

FLOATS = ("fp32", "bf16")
Form = tuple[int, int, bool, bool, bool]
MULTIPLES: Form = (4, 32, False, False, True)
CODED: list[Form] = [
    *((4, 32, minima, wide, False) for minima in (False, True) for wide in (False, True)),
    *((4, 128, minima, False, False) for minima in (False, True)),
    *((8, 32, False, False, False), (8, 128, False, True, False), (8, 0, False, True, False)),
    MULTIPLES,
]
"""(bits, group, minima, wide, multiples) of `coded`"""


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with native_path(request.param):
        yield request.param


def coded(
    rows: int, columns: int, bits: int, group: int, minima: bool, wide: bool, multiples: bool = False, seed: int = 0
) -> QuantisedWeight:
    generator = torch.Generator().manual_seed(seed)
    group = group or columns
    groups = -(-columns // group)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, groups, generator=generator) * 0.1 + 0.01
    lows = torch.randn(rows, groups, generator=generator) if minima else None
    if multiples:
        whole = torch.randint(-15, 16, (rows, groups), generator=generator).float()
        return QuantisedWeight(codes, whole, None, bits, group, scales[:, :1] / 15)
    if not wide:
        scales, lows = scales.half().float(), None if lows is None else lows.half().float()
    return QuantisedWeight(codes, scales, lows, bits, group)


def by_row(weight: QuantisedWeight) -> bool:
    """Whether the AMX path multiplies it in integers: 8 bits with one scale per row, or 4 with multiples of one."""
    return bool(PackedWeight([weight]).spec["by_row"])


def expanded(weight: QuantisedWeight) -> Tensor:
    """The weights as the AMX path multiplies them, by the definition in csrc/linear_amx.h."""
    power = 2.0 ** PackedWeight([weight]).spec["exponent"]
    columns = np.arange(weight.in_features) // weight.group

    def narrow(values: Tensor) -> np.ndarray:
        return (values.double() * power).numpy().astype(np.float16).astype(np.float64)[:, columns]

    values = (weight.codes.double().numpy() - (0 if weight.minima is not None else weight.offset)) * narrow(
        weight.scales
    )
    if weight.minima is not None:
        values += narrow(weight.minima)
    half = values.astype(np.float16).view(np.int16).astype(np.int32)
    magnitude = ((half & 0x7FFF) + 4) >> 3 << 3  # 8 bits are left, ties go away from zero
    magnitude[magnitude < 0x400] = 0  # what was denormal
    rounded = magnitude.astype(np.int16).view(np.float16).astype(np.float64) / power
    return torch.from_numpy(np.where(half < 0, -rounded, rounded))


def defined(x: Tensor, weight: QuantisedWeight, path: str) -> tuple[Tensor, Tensor]:
    """x and the weights as `path` multiplies them, in float64."""
    if path != "amx":
        return rounded_activations(x, weight.group if weight.group in (32, 128) else 128), weight.dequantise().double()
    if not by_row(weight):
        return x.bfloat16().double(), expanded(weight)
    largest = x.abs().amax(1, keepdim=True)
    codes = torch.round(x * (torch.tensor(32512.0) / largest))
    return torch.where(largest < 1e-30, 0.0, codes.double() * (largest / 32512).double()), weight.dequantise().double()


def rounded_activations(x: Tensor, group: int) -> Tensor:
    """x as the product sees it, by the definition in csrc/linear_generic.h: a scale of its own for each group."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        largest = part.abs().amax(1, keepdim=True)
        codes = torch.round(part * (torch.tensor(127.0) / largest))  # a number / a tensor is no division in torch
        codes[largest[:, 0] < 1e-30] = 0
        out[:, start : start + group] = codes.double() * (largest / 127.0).double()
    return out


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 130), columns=st.integers(1, 300), m=st.integers(1, 9), seed=st.integers(0, 99))
@pytest.mark.parametrize("form", CODED, ids=str)
def test_quantised_products_equal_their_definition(form: Form, rows: int, columns: int, m: int, seed: int) -> None:
    weight = coded(rows, columns, *form, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, columns, generator=generator) * 10.0 ** torch.randint(-3, 4, (m, 1), generator=generator)
    bias = torch.randn(rows, generator=generator)
    for name in PATHS:
        with native_path(name):
            got = ops.linear(x, PackedWeight([weight]), bias)
        seen, weights = defined(x, weight, name)
        want = seen @ weights.T + bias
        size = seen.abs() @ weights.abs().T + bias.abs() + 1e-30
        assert got.dtype is torch.float32
        # Codes with minima and codes without their offset cancel in parts: the error goes with what was summed.
        assert ((got - want).abs() / (size * 8)).max() < 2e-6, name


@pytest.mark.parametrize("form", CODED, ids=str)
def test_paths_agree_in_the_integers(form: Form) -> None:
    """With one group and scales that are powers of two every float step is exact: all paths give the same bits."""
    bits, group, minima, _, multiples = form
    columns = group or 128
    weight = coded(70, columns, bits, group, minima, True)
    scales, quarters = torch.arange(-15.0, 16.0).repeat(3)[:70, None], torch.full((70, 1), 0.25)
    weight = QuantisedWeight(
        *(weight.codes, scales if multiples else quarters, torch.full((70, 1), -0.5) if minima else None),
        *(bits, columns, quarters if multiples else None),
    )
    x = torch.randint(-127, 128, (5, columns)).float()
    x[:, 0] = 127
    want = x.double() @ weight.dequantise().double().T
    for name in PATHS:
        with native_path(name):
            got = ops.linear(x, PackedWeight([weight])).double()
        assert torch.equal(got, want), name


@pytest.mark.parametrize("kind", [*FLOATS, *CODED], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_do_not_depend_on_its_batch_or_threads(kind: object, threads: int, path: str) -> None:
    if isinstance(kind, tuple):
        weight = PackedWeight([coded(200, 328, *kind)])
    else:
        dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        weight = PackedWeight(torch.randn(200, 328, generator=torch.Generator().manual_seed(1)).to(dtype))
    x = torch.randn(220, 328, generator=torch.Generator().manual_seed(2)).to(weight.dtype)
    before = native.library.threads()
    whole = ops.linear(x, weight)
    native.library.set_threads(threads)
    try:
        for count in (1, 2, 3, 4, 5, 7, 16, 17, 32, 33, 95, 96, 97, 193):
            assert torch.equal(ops.linear(x[:count], weight), whole[:count]), count
            assert torch.equal(ops.linear(x[220 - count :], weight), whole[220 - count :]), count
    finally:
        native.library.set_threads(before)


@pytest.mark.parametrize("kind", FLOATS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 140), columns=st.integers(1, 200), m=st.integers(1, 8), seed=st.integers(0, 99))
def test_float_products_equal_fp64(kind: str, rows: int, columns: int, m: int, seed: int) -> None:
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    wide = torch.randn(m, columns + 5, generator=generator).to(dtype)
    x = wide[:, 2 : columns + 2]  # rows that don't touch
    want = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    for name in PATHS:
        with native_path(name):
            got = ops.linear(x, PackedWeight(weight)).double()
        bound = 1e-6 * size if kind == "fp32" else 1e-6 * size + want.abs() * 2**-8
        assert ((got - want).abs() <= bound + 1e-30).all(), name


@pytest.mark.parametrize("form", [CODED[0], CODED[8], MULTIPLES], ids=str)
def test_extreme_values(form: Form, path: str) -> None:
    weight = PackedWeight([coded(64, 64, *form)])
    x = torch.zeros(6, 64)
    x[1] = 1e-38  # too small for a scale of its own: taken as zero
    x[2, 5] = float("inf")
    x[3, 40] = float("nan")
    x[4] = 3e38
    x[5, 3] = -1e30
    out = ops.linear(x, weight)
    assert (out[:2] == 0).all()
    assert out[2].isnan().all() and out[3].isnan().all(), "what is not finite does not pass as a number"
    assert out[5].isfinite().all()
    for row in range(6):
        alone = ops.linear(x[row : row + 1], weight)
        assert torch.equal(alone.nan_to_num(7), out[row : row + 1].nan_to_num(7))


@pytest.mark.parametrize("kind", [*FLOATS, *CODED], ids=str)
def test_rows_are_read_back(kind: object) -> None:
    ids = torch.tensor([0, 63, 64, 99, 0])
    if isinstance(kind, tuple):
        weight = coded(100, 97, *kind)
        assert torch.equal(ops.embedding(ids, PackedWeight([weight])), weight.dequantise()[ids])
    else:
        table = torch.randn(100, 97).to(torch.float32 if kind == "fp32" else torch.bfloat16)
        assert torch.equal(ops.embedding(ids, PackedWeight(table)), table[ids])


def test_parts_are_stacked_and_blobs_reopen() -> None:
    parts = [coded(30, 64, 4, 32, True, False, seed=s) for s in range(3)]
    whole = PackedWeight(parts)
    x = torch.randn(4, 64)
    assert torch.equal(ops.linear(x, whole), torch.cat([ops.linear(x, PackedWeight([p])) for p in parts], dim=1))
    again = PackedWeight.from_blob(whole.blob, whole.spec)
    assert torch.equal(ops.linear(x, again), ops.linear(x, whole)) and again.nbytes == whole.nbytes
    with pytest.raises(ValueError, match="different formats"):
        PackedWeight([parts[0], coded(30, 64, 4, 32, False, False)])
    with pytest.raises(ValueError, match="another size"):
        PackedWeight.from_blob(whole.blob[:-64], whole.spec)
    with pytest.raises(ValueError, match="aligned"):
        PackedWeight.from_blob(torch.cat((whole.blob, whole.blob))[1 : 1 + whole.nbytes], whole.spec)


def test_hostile_sizes_raise() -> None:
    make = native.library.Weight
    for n, k, kind, group in (
        (0, 5, "fp32", 0),
        (5, -1, "fp32", 0),
        (1 << 40, 1 << 40, "int8", 32),
        (5, 5, "fp32", 32),
    ):
        with pytest.raises(ValueError):
            make(0, 0, n, k, kind, group, False, False, False, 0)
    for kind, group, minima in (("int8", 64, False), ("int8", 32, True), ("int2", 32, False), ("int4", 0, False)):
        with pytest.raises(ValueError):
            make(0, 0, 8, 8, kind, group, minima, False, False, 0)
    for by_row, exponent in ((True, 0), (False, 100), (False, -(2**31))):  # a scale by row is for groups of 128
        with pytest.raises(ValueError):
            make(0, 0, 8, 8, "int8", 32, False, False, by_row, exponent)
    for group, minima, wide, k in (
        (128, False, False, 8),
        (32, True, False, 8),
        (32, False, True, 8),
        (32, False, False, 65537),
    ):
        with pytest.raises(ValueError, match="scale by row"):
            make(0, 0, 8, k, "int4", group, minima, wide, True, 0)
    blob = pages.zeros(make(0, 0, 64, 8, "fp32", 0, False, False, False, 0).nbytes)
    weight = make(blob.data_ptr(), blob.numel(), 64, 8, "fp32", 0, False, False, False, 0)
    x = torch.zeros(4, 8)
    out = torch.zeros(4, 64)

    def run(m: int, ldx: int, ldo: int) -> None:
        native.library.linear(weight, x.data_ptr(), False, m, ldx, 0, 0, 0, out.data_ptr(), False, ldo, -1)

    run(4, 8, 64)
    for m, ldx, ldo in ((-1, 8, 64), (1 << 60, 8, 64), (4, 7, 64), (4, 8, 63), (4, 1 << 50, 64)):
        with pytest.raises(ValueError):
            run(m, ldx, ldo)
    with pytest.raises(ValueError, match="not in the weight"):
        native.library.pack_rows(weight, blob.data_ptr(), 60, 5, x.data_ptr(), 0, 0, 0)
    with pytest.raises(ValueError, match="own scales"):
        native.library.pack_rows(weight, blob.data_ptr(), 0, 4, x.data_ptr(), 0, 0, x.data_ptr())


@pytest.mark.skipif("amx" not in PATHS, reason="the processor has no AMX")
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_amx_rounds_no_activation_to_8_bits(rows: int) -> None:
    """An outlier a thousand times the rest: what is left of the rest is what bf16, or 16 bits, leave of it."""
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(3))
    x[:, 7] = 1000.0
    for form, worst in (((4, 32, True, False), 0.01), ((8, 0, False, False), 0.02), (MULTIPLES, 0.02)):
        weight = coded(64, 512, *form)
        weight.codes[:, 7] = 0 if weight.minima is not None else weight.offset  # the outlier itself adds nothing
        if weight.minima is not None:
            weight.minima.zero_()
        want = x.double() @ weight.dequantise().double().T
        with native_path("amx"):
            got = ops.linear(x, PackedWeight([weight]))
        assert (got - want).norm() / want.norm() < worst
        with native_path("avx512"):
            other = ops.linear(x, PackedWeight([weight]))
        assert (other - want).norm() / want.norm() > 5 * worst, "a control: 8 bits lose it"


@pytest.mark.skipif("amx" not in PATHS, reason="the processor has no AMX")
def test_scales_far_from_one_keep_their_precision_when_expanded() -> None:
    """Expanded weights pass through fp16, whose range is small: an exponent of the weight's own makes up for that."""
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(4))
    plain = coded(70, 256, 4, 32, False, True)
    with native_path("amx"):
        want = ops.linear(x, PackedWeight([plain]))
        for power in (-40, -12, 9, 40):
            scaled = QuantisedWeight(plain.codes, plain.scales * 2.0**power, None, 4, 32)
            assert torch.equal(bits(ops.linear(x, PackedWeight([scaled])) * 2.0**-power), bits(want)), power
        for power in (-60, 60):
            assert torch.equal(bits(ops.linear(x * 2.0**power, PackedWeight([plain])) * 2.0**-power), bits(want)), power
