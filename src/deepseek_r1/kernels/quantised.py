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

MOST_MULTIPLE = 15
"""The largest multiple of a row's scale that a group has: times a 4-bit value it still is a byte."""

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

_STEPS_MULTIPLES = (0.7, 0.8, 0.9, 1.0)
"""Parts of a row's largest scale that MOST_MULTIPLE times its own is tried to be."""

_LEVELS = {4: (-8, 7), 8: (-127, 127)}
_NO_FRACTIONS = 1.5 * 2**23
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """A weight (out, in) as codes with one scale per group of `group` neighbours in a row; the last group may be short.

    `codes` (out, in) uint8: 4 bits 0 to 15, 8 bits a signed value + 128. `scales` and `minima` (out, groups) float32.
    A weight is scale * code + minimum, or scale * (code - offset) without `minima`. `group` = in: one scale per row.
    With `row_scales` (out, 1) float32, `scales` are whole multiples of these: -15 to 15, for 4 bits without minima.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int
    group: int
    row_scales: Tensor | None = None

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
    def format(self) -> tuple[int, int, bool, bool]:
        """(bits, group, whether there are minima, and scales of rows): what agrees in this can be one product."""
        return self.bits, self.group, self.minima is not None, self.row_scales is not None

    @property
    def numbers(self) -> tuple[Tensor | None, ...]:
        """What belongs to the codes, in the order in which it is packed."""
        return self.scales, self.minima, self.row_scales

    def map_rows(self, move: Callable[[Tensor], Tensor]) -> QuantisedWeight:
        """The weight whose rows `move` has picked or reordered: it is applied to (out, …) tensors one by one."""
        minima, rows = (None if t is None else move(t) for t in (self.minima, self.row_scales))
        return QuantisedWeight(move(self.codes), move(self.scales), minima, self.bits, self.group, rows)

    def dequantise(self) -> Tensor:
        """The weights (out, in) in float32, each rounded as ggml rounds it: the product, then the sum."""
        columns = torch.arange(self.in_features) // self.group
        values = self.codes.float()
        if self.minima is None:
            values -= self.offset
        values *= self.scales[:, columns]
        if self.minima is not None:
            values += self.minima[:, columns]
        if self.row_scales is not None:
            values *= self.row_scales
        return values


def quantise(
    weight: Tensor, bits: int, group: int, *, minima: bool = False, multiples: bool = False
) -> QuantisedWeight:
    """`weight` (out, in) in `bits` (4, or 8 without `minima`) with one scale (and minimum) per `group` of a row.

    Of each group several scales are tried, each moved to the least squared error for its codes. Scales and minima are
    float16 values; float32 where a group covers the row and its scale is below float16's normal range. With `multiples`
    (4 bits without minima) they are whole multiples of a float32 scale of the row. Raises `ValueError` for weights that
    are not finite or beyond `LARGEST`.
    """
    if bits not in (4, 8) or ((minima or multiples) and bits == 8) or (minima and multiples) or group < 1:
        form = " with minima" if minima else " with multiples" if multiples else ""
        raise ValueError(f"no format has {bits} bits in groups of {group}{form}")
    rows, columns = weight.shape
    groups = -(-columns // group)
    row = group >= columns
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, groups)
    lows = torch.empty(rows, groups) if minima else None
    units = torch.empty(rows, 1) if multiples else None

    def search(start: int, first: int, last: int) -> None:
        """A few rows from `start` on, groups `first` to `last` of them, all of one width."""
        stop = min(start + step, rows)
        left, right = first * group, min(last * group, columns)
        x = weight[start:stop, left:right].float()
        if not float(x.abs().max()) <= LARGEST:
            raise ValueError(f"the weight holds values that are not finite, or beyond {LARGEST:.3g}")
        if units is not None:
            found, scales[start:stop], units[start:stop] = _in_multiples(x, group)
            codes[start:stop] = found
            return
        x = x.reshape(-1, (right - left) // (last - first))
        if lows is None:
            found, scale = _symmetric(x, bits, row)
        else:
            found, scale, low = _with_minima(x, row)
            lows[start:stop, first:last] = low.view(stop - start, -1)
        codes[start:stop, left:right] = found.view(stop - start, -1)
        scales[start:stop, first:last] = scale.view(stop - start, -1)

    step = max(1, _CHUNK_ELEMENTS // columns)
    whole = columns // group  # a short last group is searched apart
    parts = ((0, groups),) if multiples else ((0, whole), (whole, groups))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for first, last in parts:
            if first < last:
                list(threads.map(search, range(0, rows, step), repeat(first), repeat(last)))
    return QuantisedWeight(codes, scales, lows, bits, group, units)


def _symmetric(x: Tensor, bits: int, row: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales (groups, 1) of x (groups, width)."""
    scale = _stored(_scales(x, bits), row)
    q = x * _inverse(scale)
    _round(q, *_LEVELS[bits])
    return q.add_(1 << (bits - 1)).to(torch.uint8), scale


def _scales(x: Tensor, bits: int) -> Tensor:
    """The best scales (groups, 1) of x (groups, width). Four bits have one level more below zero than above."""
    (low, high), steps = _LEVELS[bits], _STEPS_4 if bits == 4 else _STEPS_8
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
    return scale * extreme


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


def _in_multiples(x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes, multiples (rows, groups) and scales (rows, 1) of x (rows, columns).

    Scales of groups are searched for as ever. Then parts of the largest one are tried as the row's scale, each group
    with the multiple next to its own; of the best one, the multiples on both sides. Least squares has the last word.
    """
    rows, columns = x.shape
    groups = -(-columns // group)
    x = torch.nn.functional.pad(x, (0, groups * group - columns)).view(rows, groups, group)
    wanted = _scales(x.view(-1, group), 4).view(rows, groups, 1)
    top = wanted.abs().amax(1, keepdim=True) / MOST_MULTIPLE
    q, miss = torch.empty_like(x), torch.empty_like(x)

    def errors(scale: Tensor) -> Tensor:
        """Squared errors (rows, groups, 1) of the codes that fit `scale` best, which are left in q."""
        _round(torch.mul(x, _inverse(scale), out=q), -8, 7)
        return torch.sub(x, q * scale, out=miss).square_().sum(2, keepdim=True)

    def nearest(share: Tensor, move: float) -> Tensor:
        return (share + move).round_().clamp_(1, MOST_MULTIPLE)

    tries = [top * step for step in _STEPS_MULTIPLES]
    sizes = [wanted.abs() * _inverse(unit) for unit in tries]
    found = torch.stack(
        [errors(nearest(s, 0.0).copysign(wanted) * u).sum(1) for s, u in zip(sizes, tries, strict=True)]
    )
    place = found.argmin(0, keepdim=True).view(1, rows, 1, 1)
    unit = torch.stack(tries).take_along_dim(place, 0)[0]
    size = wanted.abs() * _inverse(unit)
    low, high = nearest(size, -0.5), nearest(size, 0.5)
    multiples = torch.where(errors(high * unit.copysign(wanted)) < errors(low * unit.copysign(wanted)), high, low)
    multiples = torch.where(wanted == 0, 0.0, multiples.copysign(wanted))
    errors(multiples * unit)
    products = q * multiples
    squares = products.square().sum((1, 2), keepdim=True)
    unit = torch.where(squares > 0, (x * products).sum((1, 2), keepdim=True) / squares.clamp(min=_TINY), 0.0)
    return q.add_(8).to(torch.uint8).view(rows, -1)[:, :columns], multiples[..., 0], unit[..., 0]


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
