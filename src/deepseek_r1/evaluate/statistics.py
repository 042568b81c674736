"""95 % intervals: Wilson's for answers that are right or wrong, a cluster bootstrap where some belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""

RESAMPLES = 2000
_AT_ONCE = 1 << 20  # places drawn at a time: 8 MiB


def wilson(right: float, count: int) -> tuple[float, float]:
    """The interval of a share `right / count` of independent answers (Wilson 1927), without continuity correction.

    (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n). Raises `ValueError` for a count below 1.
    """
    if count < 1:
        raise ValueError("a share of nothing has no interval")
    share = right / count
    square = Z * Z / count
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    # At the ends the formula gives 0 and 1, which rounding may miss.
    low = 0.0 if right == 0 else (middle - half) / (1 + square)
    high = 1.0 if right == count else (middle + half) / (1 + square)
    return low, high


def cluster_bootstrap(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The interval of sum(sums) / sum(counts) when whole clusters are what was drawn (Cameron et al. 2008).

    `RESAMPLES` times as many clusters as there are are drawn with replacement, from a fixed seed; the interval runs
    from the 2.5th to the 97.5th percentile of their ratios. Raises `ValueError` for no clusters.
    """
    if not sums:
        raise ValueError("no clusters have no interval")
    top, bottom = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    random = np.random.default_rng(0)
    ratios: list[float] = []
    step = max(1, _AT_ONCE // len(top))
    while len(ratios) < RESAMPLES:
        drawn = random.integers(len(top), size=(min(step, RESAMPLES - len(ratios)), len(top)))
        ratios += (top[drawn].sum(1) / bottom[drawn].sum(1)).tolist()
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def share_interval(right: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The interval of pass@1: of each problem, how many of its samples were right, and how many there were.

    Wilson's for one sample each. With more, the cluster bootstrap over problems; but where every answer is right, or
    none is, no resample could differ, and Wilson's interval of as many problems as there are stands instead.
    """
    total = sum(right)
    if max(counts) == 1 or total in (0, sum(counts)):
        return wilson(len(counts) * total / sum(counts), len(counts))
    return cluster_bootstrap(right, counts)
