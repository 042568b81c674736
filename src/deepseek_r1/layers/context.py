"""Where keys and values live: the `AttentionContext` contract, and `Packed` for training and scoring.

The model never sees a cache. It hands q, k, v and the layer's `KVLayout` to the context and gets context vectors back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepseek_r1.kernels import ops


@dataclass(frozen=True)
class KVLayout:
    """What a layer stores per token: declared by the layer, obeyed by every context.

    A row is `[k head 0 | … | v head 0 | …]`. With `shared` the values are the first `value_dim` columns of the one key
    head (multi-head latent attention: the latent is stored once), and no v is passed or stored.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    shared: bool = False

    def __post_init__(self) -> None:
        if self.shared and (self.kv_heads != 1 or self.value_dim > self.key_dim):
            raise ValueError("a shared layout has one key head whose first columns are the values")

    @property
    def width(self) -> int:
        """Elements stored per token."""
        return self.kv_heads * (self.key_dim if self.shared else self.key_dim + self.value_dim)

    @property
    def bytes_per_token(self) -> int:
        """Bytes stored per token and layer."""
        return self.width * self.dtype.itemsize

    def rows(self, k: Tensor, v: Tensor | None) -> Tensor:
        """k (T, kv_heads, key_dim), v (T, kv_heads, value_dim) or None when shared -> rows (T, width), rounded."""
        flat = k.reshape(k.shape[0], -1)
        if self.shared:
            return flat.to(self.dtype)
        if v is None:
            raise ValueError("only a shared layout goes without v")
        return torch.cat((flat, v.reshape(v.shape[0], -1)), dim=-1).to(self.dtype)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, L, width) -> views k (B, kv_heads, L, key_dim), v (B, kv_heads, L, value_dim)."""
        batch, length, _ = rows.shape
        keys = self.kv_heads * self.key_dim
        k = rows[..., :keys].view(batch, length, self.kv_heads, self.key_dim).transpose(1, 2)
        if self.shared:
            return k, k[..., : self.value_dim]
        v = rows[..., keys:].view(batch, length, self.kv_heads, self.value_dim).transpose(1, 2)
        return k, v


class AttentionContext(Protocol):
    """Where keys and values live. Every context rounds k and v to `layout.dtype` before it uses them."""

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
        """q (T, heads, key_dim), k (T, kv_heads, key_dim), v (T, kv_heads, value_dim) -> (T, heads, value_dim).

        A query attends to the keys of its own sequence at its own position and before; with `window` to the last
        `window` of those only, itself included.
        """
        ...


def causal_mask(start: int, count: int, length: int, window: int | None) -> Tensor:
    """Boolean (count, length), True = attend, for queries at positions start … start + count - 1 over keys 0 …."""
    queries = torch.arange(start, start + count).unsqueeze(1)
    keys = torch.arange(length).unsqueeze(0)
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)


class Packed:
    """Whole sequences laid end to end, for training and scoring; gradients flow through it.

    `lengths` are the sequences' lengths in the order they stand in the flat batch.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

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
        rows = layout.rows(k, v)
        out = []
        start = 0
        for length in self.lengths:
            keys, values = layout.split(rows[start : start + length].unsqueeze(0))
            query = q[start : start + length].transpose(0, 1).unsqueeze(0)  # (1, heads, length, key_dim)
            masked = window is not None and window < length
            mask = causal_mask(0, length, length, window) if masked else None
            vectors = ops.attention(query, keys, values, scale=scale, mask=mask, causal=not masked)
            out.append(vectors[0].transpose(0, 1))
            start += length
        return torch.cat(out)
