"""A matrix of small integers with scales, and the search that makes one from float weights. No model is known here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

HALF_MAX = 65504.0
"""The largest float16: scales and minima of groups are stored as that."""

_HALF_NORMAL = 2.0**-14
"""The least float16 with all its bits."""

LARGEST = 2.0**100
"""No weight may be larger: products with what reads it would overflow."""

# A chunk of the search has fewer elements than torch splits among threads, and its buffers stay in a core's cache.
_CHUNK_ELEMENTS = (1 << 15) - 1

# Divisors of a group's largest magnitude that are tried; least squares then moves the scale of each.
_STEPS_4 = (7.2, 7.7, 8.0, 8.4, 9.0)
_STEPS_4_MINIMA = (13.5, 14.4, 15.0, 15.6, 16.4)
_STEPS_8 = (125.0, 126.0, 127.0)

_NO_FRACTIONS = 1.5 * 2**23
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """A weight (out, in) as codes with one scale per group of `group` neighbours in a row; the last group may be short.

    `codes` (out, in) uint8: 4 bits 0 to 15, 8 bits a signed value + 128. `scales` and `minima` (out, groups) float32.
    A weight is scale * code + minimum, or scale * (code - offset) without `minima`. `group` = in: one scale per row.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int
    group: int

    @property
    def out_features(self) -> int:
        """Rows: outputs of the product."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """Columns: inputs of the product."""
        return self.codes.shape[1]

    @property
    def offset(self) -> int:
        """The code that stands for zero, where there are no minima."""
        return 1 << (self.bits - 1)

    @property
    def format(self) -> tuple[int, int, bool]:
        """(bits, group, whether there are minima): weights over one input that agree in this can be one product."""
        return self.bits, self.group, self.minima is not None

    def map_rows(self, move: Callable[[Tensor], Tensor]) -> QuantisedWeight:
        """The weight whose rows `move` has picked or reordered: it is applied to (out, …) tensors one by one."""
        minima = None if self.minima is None else move(self.minima)
        return QuantisedWeight(move(self.codes), move(self.scales), minima, self.bits, self.group)

    def dequantise(self) -> Tensor:
        """The weights (out, in) in float32, each rounded as ggml rounds it: the product, then the sum."""
        columns = torch.arange(self.in_features) // self.group
        values = self.codes.float()
        if self.minima is None:
            values -= self.offset
        values *= self.scales[:, columns]
        if self.minima is not None:
            values += self.minima[:, columns]
        return values


def quantise(weight: Tensor, bits: int, group: int, *, minima: bool = False) -> QuantisedWeight:
    """`weight` (out, in) in `bits` (4, or 8 without `minima`) with one scale (and minimum) per `group` of a row.

    Of each group several scales are tried, each moved to the least squared error for its codes. Scales and minima are
    float16 values; float32 where a group covers the row and its scale is below float16's normal range. Raises
    `ValueError` for weights that are not finite or beyond `LARGEST`.
    """
    if bits not in (4, 8) or (minima and bits == 8) or group < 1:
        raise ValueError(f"no format has {bits} bits in groups of {group}{' with minima' if minima else ''}")
    rows, columns = weight.shape
    groups = -(-columns // group)
    row = group >= columns
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, groups)
    lows = torch.empty(rows, groups) if minima else None

    def search(start: int, first: int, last: int) -> None:
        """A few rows from `start` on, groups `first` to `last` of them, all of one width."""
        stop = min(start + step, rows)
        left, right = first * group, min(last * group, columns)
        x = weight[start:stop, left:right].float().reshape(-1, (right - left) // (last - first))
        if not float(x.abs().max()) <= LARGEST:
            raise ValueError(f"the weight holds values that are not finite, or beyond {LARGEST:.3g}")
        if lows is None:
            found, scale = _symmetric(x, bits, row)
        else:
            found, scale, low = _with_minima(x, row)
            lows[start:stop, first:last] = low.view(stop - start, -1)
        codes[start:stop, left:right] = found.view(stop - start, -1)
        scales[start:stop, first:last] = scale.view(stop - start, -1)

    step = max(1, _CHUNK_ELEMENTS // columns)
    whole = columns // group  # a short last group is searched apart
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for first, last in ((0, whole), (whole, groups)):
            if first < last:
                list(threads.map(search, range(0, rows, step), repeat(first), repeat(last)))
    return QuantisedWeight(codes, scales, lows, bits, group)


def _symmetric(x: Tensor, bits: int, row: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales (groups, 1) of x (groups, width). Four bits have one level more below zero than above."""
    low, high, steps = (-8, 7, _STEPS_4) if bits == 4 else (-127, 127, _STEPS_8)
    most, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    extreme = torch.where(most > -least, most, least)
    share = x * _inverse(extreme)
    q, product = torch.empty_like(x), torch.empty_like(x)
    dots, squares = (torch.empty(len(steps), len(x), 1) for _ in range(2))
    for index, step in enumerate(steps):
        _round(torch.mul(share, -step, out=q), low, high)
        torch.sum(torch.mul(share, q, out=product), 1, keepdim=True, out=dots[index])
        torch.sum(torch.mul(q, q, out=product), 1, keepdim=True, out=squares[index])
    scale, _ = _best(dots, squares)
    scale = _stored(scale * extreme, row)
    _round(torch.mul(x, _inverse(scale), out=q), low, high)
    return q.add_(1 << (bits - 1)).to(torch.uint8), scale


def _with_minima(x: Tensor, row: bool) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes, scales and minima (groups, 1) of x (groups, width)."""
    mean = x.mean(1, keepdim=True)
    spread = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    share = (x - mean) * _inverse(spread)  # sums of values far from zero would hide what is searched for
    above = share - share.amin(1, keepdim=True)
    q, product = torch.empty_like(x), torch.empty_like(x)
    dots, squares, means = (torch.empty(len(_STEPS_4_MINIMA), len(x), 1) for _ in range(3))
    for index, step in enumerate(_STEPS_4_MINIMA):
        # The range that 15 steps cover is taken from, or added to, both ends alike.
        _round(torch.mul(above, step, out=q).add_((15.0 - step) / 2), 0, 15)
        torch.mean(q, 1, keepdim=True, out=means[index])
        q.sub_(means[index])
        torch.sum(torch.mul(share, q, out=product), 1, keepdim=True, out=dots[index])
        torch.sum(torch.mul(q, q, out=product), 1, keepdim=True, out=squares[index])
    scale, place = _best(dots, squares)
    scale = _stored(scale * spread, row)
    minimum = _stored(mean - scale * means.gather(0, place)[0], row)
    _round(torch.mul(x - minimum, _inverse(scale), out=q), 0, 15)
    return q.to(torch.uint8), scale, minimum


def _best(dots: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The best of several tries (tries, groups, 1): its least-squares scale (groups, 1), and which it is.

    `dots` are the products of values and codes, `squares` those of codes with themselves. The squared error of a try is
    what dot^2 / square leaves of the values' own squares. A group of zeros has the scale 0.
    """
    scales = dots / squares.clamp(min=_TINY)
    place = (dots * scales).argmax(0, keepdim=True)
    return scales.gather(0, place)[0], place


def _round(values: Tensor, low: float, high: float) -> None:
    """Round in place to the nearest integer, ties to even, within `low` and `high`.

    By a sum that leaves float32 no bits for fractions: torch splits `round` among threads from 2,048 elements on, and
    waits for them longer than the work takes.
    """
    values.clamp_(low, high).add_(_NO_FRACTIONS).sub_(_NO_FRACTIONS)


def _inverse(value: Tensor) -> Tensor:
    """1 / value, and 0 where the value is 0 or too small for that."""
    inverse = value.reciprocal()
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _stored(value: Tensor, row: bool) -> Tensor:
    """`value` as it will be stored: rounded to float16, the largest of those for what lies beyond.

    A whole row's are left as they are where float16 has few bits for them: a row of small weights would lose them all.
    """
    rounded = value.clamp(-HALF_MAX, HALF_MAX).half().float()
    return torch.where(value.abs() < _HALF_NORMAL, value, rounded) if row else rounded
