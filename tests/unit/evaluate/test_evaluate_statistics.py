"""Intervals against scipy, against enumeration, and against how often they hold the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from deepseek_r1.evaluate.statistics import cluster_bootstrap, share_interval, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (1, 50), (493, 1000)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    want = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(right, count)
    assert low == pytest.approx(want.low, abs=1e-12) and high == pytest.approx(want.high, abs=1e-12)


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z² = 3.841459: (0.8 + 0.192073 ± 1.959964 sqrt(0.016 + 0.009604)) / 1.384146
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_bounds(pair: tuple[int, int]) -> None:
    right, count = pair
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1 and low < high
    mirrored = wilson(count - right, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_the_bootstrap_has_the_percentiles_of_all_resamples() -> None:
    sums, counts = [4.0, 1.0, 0.0, 3.0, 2.0, 4.0], [4] * 6
    every = [sum(draw) / 24 for draw in itertools.product(sums, repeat=6)]  # 46656 equally likely resamples
    low, high = np.percentile(every, (2.5, 97.5))
    assert cluster_bootstrap(sums, counts) == pytest.approx((low, high), abs=0.045)  # one step is 1 / 24


def test_the_bootstrap_weighs_clusters_by_their_counts() -> None:
    # One long cluster of 1 per token, one short one of 3: a resample has the long one twice, the short one twice, both.
    low, high = cluster_bootstrap([90.0, 30.0], [90, 10])
    assert (low, high) == (1.0, 3.0)
    assert cluster_bootstrap([90.0, 30.0], [90, 10]) == (low, high), "the same every time"


def test_many_clusters_give_the_normal_interval() -> None:
    random = np.random.default_rng(5)
    chances = random.beta(2, 3, 1500)
    right = random.binomial(8, chances)
    means = right / 8
    half = 1.96 * means.std(ddof=1) / len(means) ** 0.5
    low, high = share_interval(right.tolist(), [8] * 1500)
    assert low == pytest.approx(means.mean() - half, abs=0.0015) and high == pytest.approx(
        means.mean() + half, abs=0.0015
    )
    naive = wilson(float(right.sum()), 8 * 1500)
    assert high - low > 1.3 * (naive[1] - naive[0]), "samples of one problem are no independent answers"


@pytest.mark.parametrize("samples", [1, 4])
def test_intervals_hold_the_truth_about_95_times_in_100(samples: int) -> None:
    random = np.random.default_rng(samples)
    held = 0
    for _ in range(200):
        chances = random.beta(2, 2, 80)
        low, high = share_interval(random.binomial(samples, chances).tolist(), [samples] * 80)
        held += low <= 0.5 <= high
    assert held >= 180  # 190 expected, standard deviation 3


def test_where_all_is_right_the_interval_is_no_point() -> None:
    assert share_interval([8.0] * 5, [8] * 5) == wilson(5, 5)
    assert share_interval([0.0] * 5, [8] * 5) == wilson(0, 5)
    assert share_interval([1.0, 0.0, 1.0], [1, 1, 1]) == wilson(2, 3)


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="nothing"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="no clusters"):
        cluster_bootstrap([], [])
