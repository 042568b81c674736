"""Low-rank adapters (LoRA, Hu et al. 2021): y = base(x) + alpha / rank * B(A(x)), several of them over one base.

Which rows of a batch belong to which adapter stands in the `AdapterRows` that all sites of a model share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.linear import PackedLinear, PackedLinearGroup
from deepseek_r1.layers.trained import TrainedLinear


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of a flat batch, which one adapter changes."""

    adapter: str
    start: int
    stop: int


class AdapterRows:
    """The adapters' rows of the batch that is being computed: said around the forward pass, read by every site."""

    def __init__(self) -> None:
        self._everywhere: str | None = None
        self._segments: tuple[Segment, ...] = ()

    def of(self, rows: int) -> tuple[Segment, ...]:
        """The segments of a batch of so many rows."""
        return self._segments if self._everywhere is None else (Segment(self._everywhere, 0, rows),)

    @contextmanager
    def everywhere(self, adapter: str | None) -> Iterator[None]:
        """Within, all rows go through this adapter; None: through the model alone."""
        before = self._everywhere, self._segments
        self._everywhere, self._segments = adapter, ()
        try:
            yield
        finally:
            self._everywhere, self._segments = before

    @contextmanager
    def at(self, segments: tuple[Segment, ...]) -> Iterator[None]:
        """Within, these rows go through their adapters, and the others through the model alone."""
        before = self._everywhere, self._segments
        self._everywhere, self._segments = None, segments
        try:
            yield
        finally:
            self._everywhere, self._segments = before


class Factors(nn.Module):
    """One adapter at one site: A (rank, in) and B (out, rank), and what their product counts.

    B starts at zeros, so that a new adapter changes nothing.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.lora_A = TrainedLinear(a, None, dtype)
        self.lora_B = TrainedLinear(b, None, dtype)
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (T, in) -> B(A(x)) (T, out), which `scale` multiplies."""
        if self.training and self.dropout:
            x = nn.functional.dropout(x, self.dropout)
        return self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


class LoraLinear(nn.Module):
    """A linear with adapters, each by its name."""

    def __init__(self, base: nn.Module, rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """x (T, in) -> (T, out)."""
        if (parts := _in_one(self.base, x, [(self.adapters, 0)], self._rows)) is not None:
            return ops.adapted_linear(x, *parts)
        return adapted(self.base(x), x, self.adapters, self._rows)


class LoraGroup(nn.Module):
    """Linears over one input, some with adapters. `base` gives one output per member, in the order of `names`."""

    def __init__(self, base: nn.Module, names: tuple[str, ...], rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self.names = names
        self.members = nn.ModuleDict({name: nn.ModuleDict() for name in names})
        self._rows = rows

    def of(self, member: str) -> nn.ModuleDict:
        """The adapters of one member, by name."""
        held = self.members[member]
        assert isinstance(held, nn.ModuleDict)
        return held

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (T, in) -> one output per member."""
        if isinstance(self.base, PackedLinearGroup):
            firsts = itertools.accumulate(self.base.sizes[:-1], initial=0)
            places = [(self.of(name), first) for name, first in zip(self.names, firsts, strict=True)]
            if (parts := _in_one(self.base, x, places, self._rows)) is not None:
                return ops.parts(ops.adapted_linear(x, *parts), self.base.sizes)
        pairs = zip(self.base(x), self.names, strict=True)
        return tuple(adapted(out, x, self.of(name), self._rows) for out, name in pairs)


def _in_one(
    base: nn.Module, x: Tensor, places: list[tuple[nn.ModuleDict, int]], rows: AdapterRows
) -> tuple[ops.PackedWeight, Tensor | None, list[ops.Low]] | None:
    """Weight, bias and low-rank parts of a product that training can do in one, None where it can't.

    `places` are the adapters of the columns from a first one on. All rows have one adapter, nothing is dropped, and
    the frozen weight is packed for native kernels.
    """
    segments = rows.of(x.shape[0])
    if not isinstance(base, PackedLinear | PackedLinearGroup) or len(segments) != 1 or base.weight.blob is None:
        return None
    segment = segments[0]
    found = [(held[segment.adapter], first) for held, first in places if segment.adapter in held]
    parts: list[ops.Low] = []
    for factors, first in found:
        assert isinstance(factors, Factors)
        if factors.training and factors.dropout:
            return None
        a, b = factors.lora_A, factors.lora_B
        parts.append(ops.Low(a.weight, b.weight, a.packed, b.packed, factors.scale, first))
    whole = segment.stop - segment.start == x.shape[0]
    if not parts or not whole or not ops.needed(x, *(part.a for part in parts)):
        return None
    return base.weight, base.bias, parts


def adapted(out: Tensor, x: Tensor, adapters: nn.ModuleDict, rows: AdapterRows) -> Tensor:
    """out (T, n) with what the adapters add to their rows of it, as they make it of x (T, in).

    A row's result is the same whatever rows stand beside it.
    """
    for segment in rows.of(x.shape[0]):
        if segment.adapter not in adapters:
            continue
        factors = adapters[segment.adapter]
        assert isinstance(factors, Factors)
        if segment.stop - segment.start == x.shape[0]:
            out = ops.add(out, factors(x), factors.scale)
        else:
            place = slice(segment.start, segment.stop)
            ops.add_into(out[place], factors(x[place]), factors.scale)
    return out
