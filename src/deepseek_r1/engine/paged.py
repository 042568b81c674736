"""Paged keys and values: the block tensors, and the attention context of one step over them."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import KVLayout, causal_mask

GATHER_TOKENS = 8192
"""Key positions gathered at once for decoding: bounds the arena, and keeps the gathered rows near the caches."""


class KVCache:
    """One tensor (blocks, block size, row width) per layer, as each layer's layout declares."""

    def __init__(self, layouts: Items[KVLayout], num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pools = [_zeros((num_blocks, block_size, layout.width), layout.dtype) for layout in layouts]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(pool.numel() * pool.element_size() for pool in self.pools)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages take memory when they are first written, which torch's own zeros do at once."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True)
class Span:
    """The part of a step's flat batch that belongs to one sequence: `count` tokens from position `start`."""

    start: int
    count: int
    blocks: list[int]

    @property
    def length(self) -> int:
        """Key positions after this step."""
        return self.start + self.count


class _Group:
    """Spans attended in one call: several one-token spans of like length, or a single span."""

    def __init__(self, first: int, spans: Items[Span], block_size: int) -> None:
        self.rows = slice(first, first + sum(span.count for span in spans))
        self.spans = spans
        self.lengths = [span.length for span in spans]
        self.longest = max(self.lengths)
        width = -(-self.longest // block_size)
        self.blocks = torch.tensor([(span.blocks + [0] * width)[:width] for span in spans])
        self._masks: dict[int | None, Tensor | None] = {}

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


class Paged:
    """The context of one step: the spans of its sequences, one-token spans first, over the block pool."""

    def __init__(self, cache: KVCache, spans: Items[Span]) -> None:
        self.cache = cache
        size = cache.block_size
        slots = [span.blocks[p // size] * size + p % size for span in spans for p in range(span.start, span.length)]
        self.slots = torch.tensor(slots)
        self.positions = torch.tensor([p for span in spans for p in range(span.start, span.length)])
        self.groups: list[_Group] = []
        first = 0
        while spans:
            take = 1
            if spans[0].count == 1:
                longest = spans[0].length
                while take < len(spans) and spans[take].count == 1:
                    longest = max(longest, spans[take].length)
                    if longest * (take + 1) > GATHER_TOKENS:
                        break
                    take += 1
            self.groups.append(_Group(first, spans[:take], size))
            first, spans = self.groups[-1].rows.stop, spans[take:]

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
        ops.kv_write(pool, self.slots, layout.rows(k, v))
        out = []
        for group in self.groups:
            keys, values = layout.split(ops.kv_gather(pool, group.blocks)[:, : group.longest])
            query = q[group.rows]
            batch = len(group.spans)
            # (T, heads, dim) -> (B, heads, L_q, dim)
            query = query.unsqueeze(2) if group.spans[0].count == 1 else query.transpose(0, 1).unsqueeze(0)
            vectors = ops.attention(query, keys, values, scale=scale, mask=group.mask(window))
            out.append(vectors.squeeze(2) if batch > 1 or query.shape[2] == 1 else vectors[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)
