"""Paged keys and values, rings and states: their tensors, and the attention context of one step over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from deepseek_r1.engine.memory import GATHER_TOKENS
from deepseek_r1.engine.slots import Ring
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.spans import Spans
from deepseek_r1.layers.context import KVLayout, StateLayout, Step, causal_mask, visible


class KVCache:
    """The tensors of every layer, as its layout declares.

    `pools` hold rows by layer: (blocks, block size, width), shared by all sequences, or for a layout with a window
    (slots, ring rows for `max_length` tokens, width), where each running sequence owns one slot. `states` hold, by
    layer, one tensor (slots, *shape) per shape of the layout.
    """

    def __init__(
        self,
        layouts: Items[KVLayout | StateLayout],
        num_blocks: int,
        block_size: int,
        *,
        slots: int = 1,
        max_length: int | None = None,
    ) -> None:
        self.block_size = block_size
        self.has_slot_state = False
        self.pools: dict[int, Tensor] = {}
        self.states: dict[int, tuple[Tensor, ...]] = {}
        longest = num_blocks * block_size if max_length is None else max_length
        for index, layout in enumerate(layouts):
            if isinstance(layout, StateLayout):
                self.states[index] = tuple(_zeros((slots, *shape), layout.dtype) for shape in layout.shapes)
                self.has_slot_state = True
            elif layout.window is not None:
                self.pools[index] = _zeros((slots, layout.ring_rows(longest), layout.width), layout.dtype)
                self.has_slot_state = True
            else:
                self.pools[index] = _zeros((num_blocks, block_size, layout.width), layout.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        tensors = [*self.pools.values(), *(state for states in self.states.values() for state in states)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def clear_states(self, slots: Items[int]) -> None:
        """Set the states of these slots back to zeros, for sequences that start in them."""
        for states in self.states.values():
            for state in states:
                state[list(slots)] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages take memory when they are first written, which torch's own zeros do at once."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True)
class Span:
    """The part of a step's flat batch that belongs to one sequence: `count` tokens from position `start`.

    Its shared rows stand in `blocks`; rings and states stand in `slot`.
    """

    start: int
    count: int
    blocks: list[int]
    slot: int = 0

    @property
    def length(self) -> int:
        """Key positions after this step."""
        return self.start + self.count


def _batches(spans: Items[Span], keys: Callable[[Span], int]) -> Iterator[tuple[slice, Items[Span]]]:
    """Spans to compute in one call, and their rows of the flat batch: longer spans alone, one-token spans together.

    `keys` says how many key positions a span gathers; together they stay within `GATHER_TOKENS`.
    """
    first = 0
    while spans:
        take = 1
        if spans[0].count == 1:
            longest = keys(spans[0])
            while take < len(spans) and spans[take].count == 1:
                longest = max(longest, keys(spans[take]))
                if longest * (take + 1) > GATHER_TOKENS:
                    break
                take += 1
        rows = slice(first, first + sum(span.count for span in spans[:take]))
        yield rows, spans[:take]
        first, spans = rows.stop, spans[take:]


class _Group:
    """Spans attended in one call over blocks: several one-token spans of like length, or a single span."""

    def __init__(self, rows: slice, spans: Items[Span], block_size: int) -> None:
        self.rows = rows
        self.spans = spans
        self.lengths = [span.length for span in spans]
        self.longest = max(self.lengths)
        width = -(-self.longest // block_size)
        self.blocks = torch.tensor([(span.blocks + [0] * width)[:width] for span in spans])
        size = block_size
        places = [span.blocks[p // size] * size + p % size for span in spans for p in range(span.start, span.length)]
        self.places = torch.tensor(places)
        self._masks: dict[int | None, Tensor | None] = {}

    def exchange(self, pool: Tensor, rows: Tensor) -> Tensor:
        """Store the step's rows (T, width); return all rows of these spans (B, L, width)."""
        ops.kv_write(pool, self.places, rows)
        return ops.kv_gather(pool, self.blocks)[:, : self.longest]

    def mask(self, window: int | None) -> Tensor | None:
        """Which keys each query may see, broadcastable to (B, 1, L_q, L), or None where it sees all."""
        if window not in self._masks:
            self._masks[window] = self._build(window)
        return self._masks[window]

    def _build(self, window: int | None) -> Tensor | None:
        span = self.spans[0]
        if span.count > 1:
            return causal_mask(span.start, span.count, span.length, window)[None, None]
        if min(self.lengths) == self.longest and (window is None or window >= self.longest):
            return None
        keys = torch.arange(self.longest)
        ends = torch.tensor(self.lengths).unsqueeze(1)
        mask = keys < ends
        if window is not None:
            mask &= keys >= ends - window
        return mask[:, None, None]


class _RingGroup:
    """Spans attended in one call over the rings of their slots, of `size` rows each."""

    def __init__(self, rows: slice, spans: Items[Span], ring: Ring, size: int) -> None:
        self.rows = rows
        self.spans = spans
        self.alone = spans[0].count > 1
        kept = [ring.kept(span.start) for span in spans]
        stored = [ring.stored(span.start, span.count) for span in spans]
        self.sources = torch.cat([offsets + i for i, (offsets, _) in enumerate(stored)])
        self.places = torch.cat([s.slot * size + where for s, (_, where) in zip(spans, stored, strict=True)])
        if self.alone:
            span, (positions, where) = spans[0], kept[0]
            own = torch.arange(span.start, span.length)
            self.reads = (span.slot * size + where).unsqueeze(0)
            seen = visible(own, torch.cat((positions, own)), ring.window, ring.global_every)
            self._mask: Tensor | None = seen[None, None]
            return
        # A token's own row fills up the shorter lists: it is written by then, where a free row may hold anything.
        counts = torch.tensor([len(where) + 1 for _, where in kept])
        own = torch.tensor([span.slot * size + span.start % ring.window for span in spans])
        self.reads = own.unsqueeze(1).repeat(1, int(counts.max()))
        for i, (span, (_, where)) in enumerate(zip(spans, kept, strict=True)):
            self.reads[i, : len(where)] = span.slot * size + where
        equal = bool((counts == counts[0]).all())
        self._mask = None if equal else (torch.arange(self.reads.shape[1]) < counts[:, None])[:, None, None]

    def exchange(self, pool: Tensor, rows: Tensor) -> Tensor:
        """Store what a ring keeps of the step's rows (T, width); return the rows that they see (B, L, width)."""
        flat = pool.view(-1, 1, pool.shape[-1])
        if not self.alone:
            # A token's row takes the place of the one that has just left its window.
            ops.kv_write(flat, self.places, rows[self.sources])
            return ops.kv_gather(flat, self.reads)
        # A longer span's first queries still see rows that its last ones replace.
        before = ops.kv_gather(flat, self.reads)
        ops.kv_write(flat, self.places, rows[self.sources])
        return torch.cat((before, rows.unsqueeze(0)), dim=1)

    def mask(self, window: int | None) -> Tensor | None:
        """As `_Group.mask`; the window is the ring's."""
        return self._mask


class Paged:
    """The context of one step: the spans of its sequences, one-token spans first, over the cache.

    A span from position 0 starts its slot anew, whatever an earlier sequence left there. `positions` and `native_spans`
    are made from the spans unless they are given (where they stand at fixed places, see `RecordedSteps`).
    """

    def __init__(
        self,
        cache: KVCache,
        spans: Items[Span],
        positions: Tensor | None = None,
        native_spans: Spans | None = None,
    ) -> None:
        self.cache = cache
        self.spans = spans
        self._given_spans = native_spans
        if positions is None:
            positions = torch.tensor([p for span in spans for p in range(span.start, span.length)])
        self.positions = positions
        self._ring_groups: dict[Ring, list[_RingGroup]] = {}
        cache.clear_states([span.slot for span in spans if span.start == 0])

    def attend(
        self,
        layer_index: int,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        layout: KVLayout,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """See `AttentionContext.attend`."""
        pool = self.cache.pools[layer_index]
        window = layout.reach(window)
        if ops.NATIVE and layout.window is None:
            size = layout.value_dim
            return ops.paged_attention(q, k, v, pool, self._native_spans, value_dim=size, scale=scale, window=window)
        rows = layout.rows(k, v)
        groups: Items[_Group | _RingGroup]
        if layout.window is None:
            groups = self._groups
        else:
            groups = self._rings(Ring(layout.window, layout.global_every), pool.shape[1])
        out = []
        for group in groups:
            keys, values = layout.split(group.exchange(pool, rows[group.rows]))
            query = q[group.rows]
            batch = len(group.spans)
            # (T, heads, dim) -> (B, heads, L_q, dim)
            query = query.unsqueeze(2) if group.spans[0].count == 1 else query.transpose(0, 1).unsqueeze(0)
            vectors = ops.attention(query, keys, values, scale=scale, mask=group.mask(window))
            out.append(vectors.squeeze(2) if batch > 1 or query.shape[2] == 1 else vectors[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def scan(self, layer_index: int, layout: StateLayout, step: Step, *inputs: Tensor) -> Tensor:
        """See `AttentionContext.scan`. The new states stand in the sequences' slots afterwards."""
        pools = self.cache.states[layer_index]
        out = []
        for rows, slots in self._scans:
            together = slots.shape[0] == rows.stop - rows.start
            dim = 1 if together else 0  # (T, ...) -> (B, L, ...): each token is a sequence, or all are one
            states = tuple(pool.index_select(0, slots) for pool in pools)
            result, states = step(states, *(x[rows].unsqueeze(dim) for x in inputs))
            for pool, state in zip(pools, states, strict=True):
                pool.index_copy_(0, slots, state.to(pool.dtype))
            out.append(result.squeeze(dim))
        return out[0] if len(out) == 1 else torch.cat(out)

    @cached_property
    def _native_spans(self) -> Spans:
        if self._given_spans is not None:
            return self._given_spans
        return Spans.of([(span.start, span.count, span.blocks) for span in self.spans], self.cache.block_size)

    @cached_property
    def _groups(self) -> list[_Group]:
        size = self.cache.block_size
        return [_Group(rows, spans, size) for rows, spans in _batches(self.spans, lambda span: span.length)]

    def _rings(self, ring: Ring, size: int) -> list[_RingGroup]:
        if ring not in self._ring_groups:
            batches = _batches(self.spans, lambda span: min(span.length, size))
            self._ring_groups[ring] = [_RingGroup(rows, spans, ring, size) for rows, spans in batches]
        return self._ring_groups[ring]

    @cached_property
    def _scans(self) -> list[tuple[slice, Tensor]]:
        batches = _batches(self.spans, lambda span: 0)
        return [(rows, torch.tensor([span.slot for span in spans])) for rows, spans in batches]
