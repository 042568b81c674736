"""Native sampling against plain definitions and the sampler's own torch formulae, on every path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_r1.engine.request import SamplingParams
from deepseek_r1.engine.sampler import _filtered, _largest
from deepseek_r1.kernels import native, ops
from support.native_paths import PATHS, native_path

SOME = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**31)
VOCABULARIES = st.sampled_from([1, 2, 7, 31, 32, 33, 255, 257, 1000, 3001, 40_007])
SPREADS = st.sampled_from([0.0, 1e-3, 1.0, 4.0, 30.0])
paths = pytest.mark.parametrize("path", PATHS)


def logits_of(seed: int, rows: int, vocabulary: int, spread: float, grid: bool) -> Tensor:
    """Rows that begin at odd places; on a `grid` many logits are equal."""
    rng = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(rows, vocabulary + 3, generator=rng)
    return (x.round() if grid else x)[:, 1 : vocabulary + 1]


@paths
@SOME
@given(SEEDS, st.integers(1, 4), VOCABULARIES, st.booleans(), st.booleans())
def test_argmax_is_the_first_of_the_largest(
    path: str, seed: int, rows: int, vocabulary: int, grid: bool, odd: bool
) -> None:
    x = logits_of(seed, rows, vocabulary, 1.0, grid).clone()
    if odd:
        holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        x[holes < 0.3] = math.nan
        x[holes > 0.9] = -math.inf
        x[:, vocabulary // 2] = -math.inf
    with native_path(path):
        got = ops.argmax(x)
    most = np.nanmax(x.numpy(), axis=1, keepdims=True)
    assert got.tolist() == [int(np.flatnonzero(row)[0]) for row in x.numpy() == most]


def test_argmax_of_nothing_but_nan_and_of_infinities() -> None:
    nan, inf = math.nan, math.inf
    x = torch.tensor([[nan, nan, nan], [nan, -inf, -inf], [1.0, inf, inf], [-inf, -inf, -inf]])
    assert ops.argmax(x).tolist() == [0, 1, 1, 0]


@paths
@SOME
@given(SEEDS, st.integers(1, 4), VOCABULARIES, SPREADS)
def test_log_sum_exp(path: str, seed: int, rows: int, vocabulary: int, spread: float) -> None:
    x = logits_of(seed, rows, vocabulary, spread, False)
    with native_path(path):
        got = ops.log_sum_exp(x)
    torch.testing.assert_close(got, torch.logsumexp(x.double(), -1), rtol=1e-14, atol=1e-13)


def test_log_sum_exp_of_extremes() -> None:
    inf = math.inf
    x = torch.tensor([[-inf, -inf], [3e38, 3e38], [-3e38, 3e38], [math.nan, 0.0], [inf, 0.0]])
    big = float(x[1, 0])
    assert ops.log_sum_exp(x).tolist() == [-inf, big, big, 0.0, inf]


@paths
@SOME
@given(SEEDS, VOCABULARIES, SPREADS, st.booleans(), st.integers(0, 40))
def test_logprobs(path: str, seed: int, vocabulary: int, spread: float, grid: bool, count: int) -> None:
    x = logits_of(seed, 3, vocabulary, spread, grid)
    count = min(count, vocabulary)
    tokens = torch.tensor([0, vocabulary - 1])
    with native_path(path):
        own, ids, values = ops.logprobs(x, torch.tensor([2, 0]), tokens, count)
    for i, row in enumerate((2, 0)):
        want = x[row].double() - torch.logsumexp(x[row].double(), -1)
        assert abs(own[i] - want[tokens[i]]) < 1e-12
        best, _ = _largest(x[row].double(), count) if count else (np.zeros(0, dtype=np.int64), None)
        assert ids[i].tolist() == best.tolist()
        torch.testing.assert_close(values[i], want[torch.from_numpy(best)], rtol=0, atol=1e-12)


filters = st.builds(
    ops.Filter,
    temperature=st.sampled_from([1.0, 0.3, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 50, 2000, 10**9]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.95, 0.5, 0.011]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1e-4, 1.0]),
)


def wanted(row: Tensor, chosen: ops.Filter) -> tuple[np.ndarray, np.ndarray]:
    """What the sampler's torch formula leaves, without the tokens that have no chance."""
    params = SamplingParams(1, top_k=chosen.top_k, top_p=chosen.top_p, min_p=chosen.min_p)
    ids, chances = _filtered(row.double() / chosen.temperature, params)
    ids = np.arange(len(chances)) if ids is None else ids
    return ids[chances > 0], chances[chances > 0]


@paths
@settings(max_examples=80, deadline=None)
@given(SEEDS, VOCABULARIES, SPREADS, st.booleans(), filters, st.floats(0, 1, exclude_max=True))
def test_filters_and_draws_are_the_samplers(
    path: str, seed: int, vocabulary: int, spread: float, grid: bool, chosen: ops.Filter, number: float
) -> None:
    row = logits_of(seed, 1, vocabulary, spread, grid)[0]
    with native_path(path):
        ids, chances = ops.candidates(row, chosen)
        token = int(ops.draw(row[None], torch.tensor([0]), [chosen], [number]))
    want, want_chances = wanted(row, chosen)
    assert ids.tolist() == want.tolist()
    np.testing.assert_allclose(chances.numpy(), want_chances, rtol=1e-13)
    sums = np.cumsum(want_chances)
    place = int(np.searchsorted(sums, number * sums[-1], side="right"))
    near = abs(sums - number * sums[-1]).min() < 1e-12 * sums[-1]  # where rounding decides
    assert token == want[min(place, len(want) - 1)] or near


@paths
def test_flat_and_peaked_rows_of_a_large_vocabulary(path: str) -> None:
    rng = torch.Generator().manual_seed(0)
    flat, equal = 0.01 * torch.randn(60_001, generator=rng), torch.zeros(60_001)
    peaked = torch.randn(60_001, generator=rng)
    peaked[[77, 60_000]] = 40.0
    for row in (flat, equal, peaked):
        for chosen in (
            ops.Filter(top_p=0.95),
            ops.Filter(top_k=50, top_p=0.9),
            ops.Filter(top_k=40_000),
            ops.Filter(),
        ):
            with native_path(path):
                ids, _ = ops.candidates(row, chosen)
            # Sums of 60 000 chances in another order may keep one token more or less.
            want, _ = wanted(row, chosen)
            assert len(np.setxor1d(ids.numpy(), want)) <= (1 if chosen.top_p < 1 and not chosen.top_k else 0)


@paths
def test_ends_of_the_number_line(path: str) -> None:
    x = torch.tensor([[-math.inf, 2.0, -math.inf, 1.0, math.nan, -math.inf]])
    last = math.nextafter(1.0, 0.0)
    one, all_nan, infinite = torch.tensor([0]), torch.full((1, 40), math.nan), torch.zeros(1, 40)
    infinite[0, 9] = math.inf
    for chosen in (ops.Filter(), ops.Filter(top_k=3), ops.Filter(top_p=0.9999), ops.Filter(min_p=0.01)):
        with native_path(path):
            draws = [int(ops.draw(x, one, [chosen], [u])) for u in (0.0, 0.5, last)]
            assert draws == [1, 1, 3]
            assert int(ops.draw(all_nan, one, [chosen], [0.7])) == 0
            assert int(ops.draw(infinite, one, [chosen], [0.7])) == 9


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_batch(threads: int) -> None:
    x = logits_of(1, 24, 5_003, 2.0, False)
    kinds = [ops.Filter(), ops.Filter(top_p=0.9), ops.Filter(0.7, 40, 0.8), ops.Filter(min_p=0.02)]
    chosen = [kinds[i % 4] for i in range(24)]
    numbers = [(i * 0.618) % 1 for i in range(24)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    with native_path("auto", threads):
        alone = [int(ops.draw(x[i : i + 1], torch.tensor([0]), [chosen[i]], [numbers[i]])) for i in range(24)]
        together = ops.draw(x, order, [chosen[i] for i in order], [numbers[i] for i in order])
        sums = ops.log_sum_exp(x)
        assert torch.equal(torch.cat([ops.log_sum_exp(x[i : i + 1]) for i in range(24)]), sums)
    assert together.tolist() == [alone[i] for i in order]


def test_hostile_arguments_raise() -> None:
    x = torch.zeros(2, 8)
    one = torch.tensor([0])
    for rows in (torch.tensor([2]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="outside the logits"):
            ops.draw(x, rows, [ops.Filter()], [0.5])
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            ops.draw(x, one, [ops.Filter(temperature)], [0.5])
        with pytest.raises(ValueError, match="temperature"):
            ops.candidates(x[0], ops.Filter(temperature))
    for token, count in ((8, 0), (-1, 0), (0, 9), (0, -1)):
        with pytest.raises((ValueError, RuntimeError)):
            ops.logprobs(x, one, torch.tensor([token]), count)
    with pytest.raises(ValueError, match="one filter"):
        ops.draw(x, one, [], [])
    out = torch.empty(2, dtype=torch.int64)
    for rows, vocabulary, step in ((-1, 8, 8), (2, 0, 8), (2, -8, 8), (2**40, 2**40, 8), (2, 8, -8)):
        with pytest.raises(ValueError, match="logits"):
            native.library.argmax(x.data_ptr(), rows, vocabulary, step, 0, out.data_ptr())
