"""Native kernels over rows against torch and float64, on odd shapes, strides and values, on every path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.kernels import native, ops, reference
from support.native_paths import PATHS, awkward, bits, native_path

SPECIALS = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30, 1e-40)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SEEDS = st.integers(0, 2**31)
SOME = settings(max_examples=40, deadline=None)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""A sum in another order may round to the next number."""

paths = pytest.mark.parametrize("path", PATHS)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    relative = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, want, rtol=relative, atol=1e-6 * relative, equal_nan=True)


def cut(x: torch.Tensor, width: int, offset: int) -> torch.Tensor:
    """x (..., wider) without its first columns and its last: rows that neither begin nor end where memory does."""
    return x[..., offset : offset + width]


@paths
@SOME
@given(
    SEEDS, st.integers(0, 9), st.integers(1, 4), st.integers(1, 200), st.integers(0, 3), DTYPES, DTYPES, st.booleans()
)
def test_rms_norm(
    path: str,
    seed: int,
    tokens: int,
    heads: int,
    dim: int,
    offset: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    special: bool,
) -> None:
    x = awkward(tokens, heads, dim + 5, seed=seed, dtype=dtype, specials=SPECIALS if special else ())
    x = cut(x, dim, offset)
    weight = awkward(dim, seed=seed + 1, dtype=weight_dtype)
    with native_path(path):
        got = ops.rms_norm(x, weight, 1e-6)
        alone = [ops.rms_norm(x[i : i + 1, j], weight, 1e-6) for i in range(tokens) for j in range(heads)]
    close(got, reference.rms_norm(x.to(weight_dtype), weight, 1e-6))
    for one, row in zip(alone, got.reshape(-1, dim), strict=True):
        assert torch.equal(bits(one[0]), bits(row))


@paths
@SOME
@given(SEEDS, st.integers(1, 40), st.integers(1, 64), st.floats(0.5, 2), DTYPES)
def test_rotary(path: str, seed: int, tokens: int, half: int, factor: float, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 200_000, (tokens,), generator=rng)
    frequencies = 1 / 10_000 ** (torch.arange(half) / half)
    with native_path(path):
        cos, sin = ops.rotary(positions, frequencies, factor, dtype)
    angles = (positions.float()[:, None] * frequencies).double()
    want = torch.cat((angles.cos(), angles.cos()), 1) * factor, torch.cat((-angles.sin(), angles.sin()), 1) * factor
    for got, exact in zip((cos, sin), want, strict=True):
        assert got.shape == (tokens, 1, 2 * half) and got.dtype == dtype
        rounding = 2**-24 if dtype is torch.float32 else 2**-9  # of the factor, of the cosine, of the product
        assert (got[:, 0].double() - exact).abs().max() <= 3 * rounding * factor


@paths
@SOME
@given(
    SEEDS, st.integers(0, 9), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9), DTYPES, DTYPES, st.booleans()
)
def test_rope(
    path: str,
    seed: int,
    tokens: int,
    heads: int,
    half: int,
    rest: int,
    dtype: torch.dtype,
    table: torch.dtype,
    special: bool,
) -> None:
    x = awkward(tokens, heads, 2 * half + rest + 3, seed=seed, dtype=dtype, specials=SPECIALS if special else ())
    x = cut(x, 2 * half + rest, 2)
    angles = torch.rand(tokens, 1, half, generator=torch.Generator().manual_seed(seed)) * 7
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(table)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(table)
    want = reference.rope(x.to(table), cos, sin)
    with native_path(path):
        got = ops.rope(x, cos, sin)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_rope_in_place() -> None:
    x = awkward(5, 3, 20, seed=1)
    cos, sin = awkward(5, 1, 12, seed=2), awkward(5, 1, 12, seed=3)
    want = reference.rope(x, cos, sin)
    places = (x.data_ptr(), False, 5, 3, 20, 60, 20)
    native.library.rope(*places, cos.data_ptr(), sin.data_ptr(), False, 12, x.data_ptr(), False, 60, 20)
    assert torch.equal(x, want)


@paths
@SOME
@given(SEEDS, st.integers(0, 6), st.integers(1, 150), st.sampled_from(["silu", "gelu_tanh"]), DTYPES, st.booleans())
def test_gated(path: str, seed: int, rows: int, dim: int, activation: str, dtype: torch.dtype, special: bool) -> None:
    both = awkward(rows, 2 * dim + 3, seed=seed, dtype=dtype, specials=SPECIALS if special else ())
    gate, up = both[:, 1 : dim + 1], both[:, dim + 1 : 2 * dim + 1]
    with native_path(path):
        got = ops.gated(activation, gate, up)
    want = reference.gated(activation, gate, up)
    if activation == "silu":
        return close(got, want)
    # 1 + tanh loses what is left of it where tanh is near -1, in float64 too; as a quotient it keeps its digits.
    x, y = gate.double(), up.double()
    activated = x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = activated * y
    ordinary = torch.isfinite(exact) & torch.isfinite(want) & (activated.abs() > 1e-30) & (exact.abs() > 1e-30)
    assert bool(((got.double() - exact).abs() <= 10 * TOLERANCE[dtype] * exact.abs())[ordinary].all())
    assert torch.equal(got.isnan()[up.isfinite()], want.isnan()[up.isfinite()])


@pytest.mark.parametrize("path", PATHS)
def test_the_exponential_is_right_to_two_units(path: str) -> None:
    x = torch.cat((torch.linspace(-87, 88, 1_000_003), torch.linspace(-1e-3, 1e-3, 10_001)))
    # silu(x) / x is 1 / (1 + e^-x): for large -x that is e^x, with the exponential's own error and a rounding or two.
    with native_path(path):
        got = ops.gated("silu", x, torch.ones_like(x)).double()
    exact = x.double() / (1 + torch.exp(-x.double()))
    wrong = (got - exact).abs() / exact.abs().clamp(min=2.0**-126)
    assert wrong.max() < 4 * 2**-24
    edges = torch.tensor([88.8, 200.0, 1e30, math.inf, -104.0, -1e30, math.nan])
    with native_path(path):
        got = ops.gated("silu", edges, torch.ones_like(edges))
    assert got[:4].tolist() == edges[:4].tolist() and got[4:6].abs().tolist() == [0.0, 0.0] and bool(got[6].isnan())


@paths
@SOME
@given(SEEDS, st.integers(0, 6), st.integers(1, 150), st.sampled_from([1.0, 0.22]), DTYPES, DTYPES)
def test_add_and_scaled_are_torchs(
    path: str, seed: int, rows: int, dim: int, scale: float, dtype: torch.dtype, other: torch.dtype
) -> None:
    x = cut(awkward(rows, dim + 2, seed=seed, dtype=dtype, specials=SPECIALS), dim, 1)
    y = cut(awkward(rows, dim + 1, seed=seed + 1, dtype=other), dim, 1)
    with native_path(path):
        sums, scaled = ops.add(x, y, scale), ops.scaled(x, scale, other)
    torch.testing.assert_close(sums, reference.add(x, y, scale), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scaled, reference.scaled(x, scale, other), rtol=0, atol=0, equal_nan=True)


@paths
@SOME
@given(SEEDS, st.integers(1, 30), st.integers(1, 70), st.integers(0, 50), DTYPES, DTYPES)
def test_copies_take_rows_and_change_the_type(
    path: str, seed: int, rows: int, dim: int, taken: int, dtype: torch.dtype, other: torch.dtype
) -> None:
    x = cut(awkward(rows, dim + 2, seed=seed, dtype=dtype, specials=SPECIALS), dim, 1)
    index = torch.randint(0, rows, (taken,), generator=torch.Generator().manual_seed(seed))
    with native_path(path):
        cast, gathered = native.copy(x, None, 1.0, other), native.copy(x, index, 1.0, other)
    torch.testing.assert_close(cast, x.to(other), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(gathered, x[index].to(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    x, weight = awkward(300, 520, seed=1), awkward(520, seed=2)
    want = ops.rms_norm(x, weight, 1e-5), ops.gated("silu", x, x), ops.add(x, x)
    with native_path("auto", threads):
        got = ops.rms_norm(x, weight, 1e-5), ops.gated("silu", x, x), ops.add(x, x)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(bits(one), bits(other))


def test_hostile_sizes_raise() -> None:
    x = torch.zeros(64)
    here = x.data_ptr()
    norm = native.library.rms_norm
    for tokens, heads, dim in ((-1, 1, 4), (1, -1, 4), (1, 1, -4), (2**62, 1, 4), (2**31, 2**31, 4), (2**40, 2, 2)):
        with pytest.raises(ValueError, match=r"sizes? (is|are) "):
            norm(here, False, tokens, heads, dim, 4, 4, here, False, 1e-5, here, False, 4, 4)
    with pytest.raises(ValueError, match="stride"):
        norm(here, False, 2, 1, 4, -4, 4, here, False, 1e-5, here, False, 4, 4)
    with pytest.raises(ValueError, match="overlap"):
        norm(here, False, 2, 1, 4, 4, 4, here, False, 1e-5, here, False, 3, 4)
    with pytest.raises(ValueError, match="null"):
        norm(0, False, 2, 1, 4, 4, 4, here, False, 1e-5, here, False, 4, 4)
    with pytest.raises(ValueError, match="even number"):
        native.library.rope(here, False, 1, 1, 4, 4, 4, here, here, False, 6, here, False, 4, 4)
    with pytest.raises(ValueError, match="activation"):
        native.library.gated(2, here, here, False, 1, 4, 4, 4, here, False, 4)
    for layout in (
        (3, 1, 4, 4, False),
        (0, 0, 4, 4, False),
        (0, 2, 4, 4, True),
        (0, 1, 4, 5, True),
        (0, 2**40, 4, 4, False),
    ):
        with pytest.raises(ValueError):
            native.library.RowLayout(*layout)
    assert not x.any()
