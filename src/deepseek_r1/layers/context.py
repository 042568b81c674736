"""Where keys, values and states live: the `AttentionContext` contract, and `Packed` for training and scoring.

The model never sees a cache. It hands q, k, v and the layer's layout to the context and gets context vectors back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from deepseek_r1.kernels import ops
from deepseek_r1.kernels.spans import Spans

Step = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""A layer's step over B sequences of L tokens each: (states, *inputs (B, L, ...)) -> (out (B, L, ...), new states)."""


@dataclass(frozen=True)
class KVLayout:
    """What a layer stores per token: declared by the layer, obeyed by every context.

    A row is `[k head 0 | … | v head 0 | …]`, and in int8 a float32 scale for each of these heads follows. With `shared`
    the values are the first `value_dim` columns of the one key head (multi-head latent attention: the latent is stored
    once), and no v is passed or stored.

    A layout that names a `window` is kept as a ring: a query at position i sees the keys j <= i with i - j < window,
    and, with `global_every`, those with j % global_every == 0, which every later query sees (a causal form of the
    window and global tokens of Beltagy et al. 2020 and Zaheer et al. 2020; 512 and 64 are usual). Older rows are given
    up, so a sequence costs `window` rows and one per global token, and its prefix can't be shared.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    shared: bool = False
    window: int | None = None
    global_every: int | None = None

    def __post_init__(self) -> None:
        if self.shared and (self.kv_heads != 1 or self.value_dim > self.key_dim):
            raise ValueError("a shared layout has one key head whose first columns are the values")
        if self.global_every is not None and self.window is None:
            raise ValueError("global tokens go with a window: without one every token is seen")
        if any(size is not None and size < 1 for size in (self.window, self.global_every)):
            raise ValueError("window and global_every are at least 1")

    @property
    def width(self) -> int:
        """Elements stored per token, scales included."""
        if self.dtype is not torch.int8:
            return self._codes
        return -(-self._codes // 4) * 4 + 4 * self._scales

    @property
    def _codes(self) -> int:
        return self.kv_heads * (self.key_dim if self.shared else self.key_dim + self.value_dim)

    @property
    def _scales(self) -> int:
        return self.kv_heads * (1 if self.shared else 2)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's row."""
        return self.width * self.dtype.itemsize

    def ring_rows(self, length: int) -> int:
        """Rows that a ring keeps of a sequence of up to `length` tokens."""
        if self.window is None:
            raise ValueError("only a layout with a window is kept as a ring")
        return self.window + (-(-length // self.global_every) if self.global_every else 0)

    def reach(self, window: int | None) -> int | None:
        """The window of a call: its own, or the layout's. Raises `ValueError` when both name one."""
        if self.window is not None and window is not None:
            raise ValueError("a ring has the window of its layout: attend takes no other")
        return window if self.window is None else self.window

    def rounded(self, k: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """k (T, kv_heads, key_dim), v (T, kv_heads, value_dim) or None when shared -> both as they are stored."""
        rounded = ops.int8_rounded if self.dtype is torch.int8 else lambda x: x.to(self.dtype)
        k = rounded(k)
        if self.shared:
            return k, k[..., : self.value_dim]
        if v is None:
            raise ValueError("only a shared layout goes without v")
        return k, rounded(v)

    def rows(self, k: Tensor, v: Tensor | None) -> Tensor:
        """k (T, kv_heads, key_dim), v (T, kv_heads, value_dim) or None when shared -> rows (T, width), rounded."""
        if self.dtype is torch.int8:
            heads = [ops.int8_heads(part) for part in (k, v)[: 1 if self.shared else 2] if part is not None]
            padding = torch.zeros(len(k), -self._codes % 4, dtype=torch.int8)
            scales = torch.cat([scale.flatten(1) for _, scale in heads], -1)
            return torch.cat([*(codes.flatten(1) for codes, _ in heads), padding, scales.view(torch.int8)], -1)
        parts = self.rounded(k, v)
        return torch.cat([part.flatten(1) for part in (parts[:1] if self.shared else parts)], dim=-1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, L, width) -> k (B, kv_heads, L, key_dim), v (B, kv_heads, L, value_dim)."""
        batch, length, _ = rows.shape
        keys = self.kv_heads * self.key_dim
        if self.dtype is torch.int8:
            scales = rows[..., -4 * self._scales :].contiguous().view(torch.float32)
            widths = [self.key_dim] * self.kv_heads + [self.value_dim] * (self._scales - self.kv_heads)
            rows = rows[..., : self._codes].float() * scales.repeat_interleave(torch.tensor(widths), -1)
        k = rows[..., :keys].view(batch, length, self.kv_heads, self.key_dim).transpose(1, 2)
        if self.shared:
            return k, k[..., : self.value_dim]
        v = rows[..., keys:].view(batch, length, self.kv_heads, self.value_dim).transpose(1, 2)
        return k, v


@dataclass(frozen=True)
class StateLayout:
    """What a layer keeps per sequence, however long it grows: one tensor per shape, all of one dtype, zeros at first.

    Because the state at the end of a prefix isn't kept when the sequence goes on, its prefix can't be shared.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype


class AttentionContext(Protocol):
    """Where keys, values and states live. Every context rounds k and v to `layout.dtype` before it uses them."""

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
        `window` of those only, itself included. A layout with a window of its own says what is seen, and raises
        `ValueError` when `window` is given too.
        """
        ...

    def scan(self, layer_index: int, layout: StateLayout, step: Step, *inputs: Tensor) -> Tensor:
        """Flat inputs (T, ...) -> (T, ...): `step` over each sequence's tokens, from the state that it was left in.

        Sequences are stepped together only where each has one token.
        """
        ...


_LEAST_SHARE = 0.75  # of the longest sequence beside which a shorter one is padded


def visible(queries: Tensor, keys: Tensor, window: int | None, global_every: int | None = None) -> Tensor:
    """Boolean (n, m), True = attend, for positions `queries` (n,) and `keys` (m,): see `AttentionContext.attend`."""
    queries = queries.unsqueeze(1)
    seen = keys <= queries
    if window is None:
        return seen
    near = keys > queries - window
    return seen & (near if global_every is None else near | (keys % global_every == 0))


def causal_mask(start: int, count: int, length: int, window: int | None, global_every: int | None = None) -> Tensor:
    """Boolean (count, length), True = attend, for queries at positions start … start + count - 1 over keys 0 …."""
    return visible(torch.arange(start, start + count), torch.arange(length), window, global_every)


class _Group:
    """Sequences side by side, padded behind their ends, where a causal mask lets nobody look.

    `seen` are each one's rows of the flat batch, those that it goes on from included. `rows` are the others, its own,
    and `places` where these stand among the padded ones.
    """

    def __init__(self, seen: list[Tensor], before: list[int]) -> None:
        self.count, self.length = len(seen), max(len(rows) for rows in seen)
        self.rows = torch.cat([rows[start:] for rows, start in zip(seen, before, strict=True)])
        index = torch.full((self.count, self.length), int(self.rows[0]))
        own = torch.zeros(self.count, self.length, dtype=torch.bool)
        for i, (rows, start) in enumerate(zip(seen, before, strict=True)):
            index[i, : len(rows)] = rows
            own[i, start : len(rows)] = True
        self.places = own.flatten().nonzero().squeeze(1)
        self._index = index.flatten()

    def pad(self, x: Tensor) -> Tensor:
        """x (T, heads, dim) -> (count, length, heads, dim)."""
        return x.index_select(0, self._index).view(self.count, self.length, *x.shape[1:])

    def attend(self, parts: list[Tensor], layout: KVLayout, scale: float, window: int | None) -> Tensor:
        """Padded q, k and v -> (count, length, heads, value_dim)."""
        query, keys, values = (part.transpose(1, 2) for part in parts)  # (count, heads, length, dim)
        masked = window is not None and window < self.length
        size = self.length
        mask = causal_mask(0, size, size, window, layout.global_every)[None, None] if masked else None
        return ops.attention(query, keys, values, scale=scale, mask=mask, causal=not masked).transpose(1, 2)


class Packed:
    """Whole sequences laid end to end, for training and scoring; gradients flow through it.

    `lengths` are the sequences' lengths in the order they stand in the flat batch. `prefixes` names, for a sequence
    that goes on from the end of another one, that one's number: answers to one prompt need the prompt once.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[int | None] | None = None) -> None:
        self._families = ops.Families(lengths, [None] * len(lengths) if prefixes is None else prefixes)

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
        window = layout.reach(window)

        def run(q: Tensor, k: Tensor, v: Tensor | None = None) -> Tensor:
            pool = torch.empty(len(k), 1, layout.width, dtype=layout.dtype)
            size = layout.value_dim
            return ops.paged_attention(q, k, v, pool, self._spans, value_dim=size, scale=scale, window=window)

        def gradient(grad: Tensor, q: Tensor, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, ...]:
            # Straight through what is rounded.
            of_q, of_k, of_v = ops.attention_gradient(
                grad, q, *layout.rounded(k, v), families=self._families, scale=scale, window=window
            )
            if v is None:  # the values are columns of the keys
                of_k[..., : layout.value_dim] += of_v
                return of_q.to(q.dtype), of_k.to(k.dtype)
            return of_q.to(q.dtype), of_k.to(k.dtype), of_v.to(v.dtype)

        given = (q, k) if v is None else (q, k, v)
        if ops.natively(*given) and layout.global_every is None:
            return ops.with_gradient(run, gradient, *given)
        return self._attend(q, *layout.rounded(k, v), layout, scale, window)

    @cached_property
    def _spans(self) -> Spans:
        families = self._families  # every row is a block of its own
        return Spans.of(
            [(families.before(i), size, families.rows(i).tolist()) for i, size in enumerate(families.lengths)], 1
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: KVLayout, scale: float, window: int | None) -> Tensor:
        out = q.new_empty(*q.shape[:2], layout.value_dim)
        for group in self._groups:
            part = group.attend([group.pad(x) for x in (q, k, v)], layout, scale, window)
            out = out.index_copy(0, group.rows, part.flatten(0, 1).index_select(0, group.places))
        return out

    @cached_property
    def _groups(self) -> list[_Group]:
        """The sequences in groups of similar lengths, so that padding makes little more work."""
        families = self._families
        seen = {i: families.rows(i) for i, size in enumerate(families.lengths) if size}
        groups: list[list[int]] = []
        for i in sorted(seen, key=lambda i: -len(seen[i])):
            if not groups or len(seen[i]) < _LEAST_SHARE * len(seen[groups[-1][0]]):
                groups.append([])
            groups[-1].append(i)
        return [_Group([seen[i] for i in group], [families.before(i) for i in group]) for group in groups]

    def scan(self, layer_index: int, layout: StateLayout, step: Step, *inputs: Tensor) -> Tensor:
        """See `AttentionContext.scan`. Every sequence starts from zeros."""
        out = []
        device = inputs[0].device
        for i in range(len(self._families.lengths)):
            rows = self._families.rows(i).to(device)
            states = tuple(torch.zeros(1, *shape, dtype=layout.dtype, device=device) for shape in layout.shapes)
            found = step(states, *(x.index_select(0, rows).unsqueeze(0) for x in inputs))[0][0]
            out.append(found[self._families.before(i) :])
        return torch.cat(out)
