"""Medians with their spread, of figures and of ratios between figures of the same round."""

from __future__ import annotations

from collections.abc import Sequence

from deepseek_r1.operate.benchmark import percentile

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles, extremes and count of at least one value."""
    ordered = sorted(values)
    quantiles = {"median": 50, "q1": 25, "q3": 75}
    return {name: percentile(ordered, q) for name, q in quantiles.items()} | {
        "min": ordered[0],
        "max": ordered[-1],
        "count": len(ordered),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Spread of ours / theirs, round by round: what slows a whole round slows both, and cancels."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])
