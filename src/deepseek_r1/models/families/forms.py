"""How a stored tensor becomes ours and goes back: rope's row orders, Gemma's norms, the latent's up-projections.

Only methods of the tensors are used, so that families stay importable without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from deepseek_r1.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


class Form(Protocol):
    """The way between the parameters of one stored tensor and the stored tensor."""

    def split(self, stored: Tensor, sizes: list[tuple[int, ...]], config: ModelConfig) -> list[Tensor]:
        """The parameters (of these shapes) that `stored` holds."""
        ...

    def join(self, parts: list[Tensor], config: ModelConfig) -> Tensor:
        """The tensor to store for these parameters."""
        ...

    def stored_shape(self, sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The stored tensor's shape for parameters of these shapes."""
        ...


class Rows:
    """The parameters stand one below the other; a single one is the stored tensor itself."""

    def stored_shape(self, sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """See `Form.stored_shape`."""
        return (sum(size[0] for size in sizes), *sizes[0][1:])

    def split(self, stored: Tensor, sizes: list[tuple[int, ...]], config: ModelConfig) -> list[Tensor]:
        """See `Form.split`."""
        if len(sizes) == 1:
            return [stored]
        ends = list(accumulate(size[0] for size in sizes))
        return [stored[end - size[0] : end] for size, end in zip(sizes, ends, strict=True)]

    def join(self, parts: list[Tensor], config: ModelConfig) -> Tensor:
        """See `Form.join`."""
        first, *rest = parts
        if not rest:
            return first
        out = first.new_empty((sum(part.shape[0] for part in parts), *first.shape[1:]))
        start = 0
        for part in parts:
            out[start : start + part.shape[0]] = part
            start += part.shape[0]
        return out


@dataclass(frozen=True)
class Paired(Rows):
    """Rotated rows are stored as pairs (x0, y0, x1, y1 …); here the x of a head stand before its y (halves).

    `place` gives (heads, rows of a head before the rotated ones, rotated rows). q and k are reordered alike, so their
    products stay what they are.
    """

    place: Callable[[ModelConfig], tuple[int, int, int]]

    def split(self, stored: Tensor, sizes: list[tuple[int, ...]], config: ModelConfig) -> list[Tensor]:
        """See `Form.split`."""
        return [self._reorder(stored, config, undo=False)]

    def join(self, parts: list[Tensor], config: ModelConfig) -> Tensor:
        """See `Form.join`."""
        return self._reorder(parts[0], config, undo=True)

    def _reorder(self, tensor: Tensor, config: ModelConfig, *, undo: bool) -> Tensor:
        heads, before, count = self.place(config)
        out = tensor.clone()
        rows = out.reshape(heads, -1, *tensor.shape[1:])  # a view: `clone` is contiguous
        part = tensor.reshape(rows.shape)[:, before : before + count]
        inner = (2, count // 2) if undo else (count // 2, 2)
        turned = part.reshape(heads, *inner, *tensor.shape[1:]).transpose(1, 2)
        rows[:, before : before + count] = turned.reshape(part.shape)
        return out


class PlusOne(Rows):
    """A norm stored as the difference of its weight from one (Gemma)."""

    def split(self, stored: Tensor, sizes: list[tuple[int, ...]], config: ModelConfig) -> list[Tensor]:
        """See `Form.split`."""
        return [stored + 1]

    def join(self, parts: list[Tensor], config: ModelConfig) -> Tensor:
        """See `Form.join`."""
        return parts[0] - 1


class LatentUp:
    """`kv_b_proj` of latent attention: each head's key rows, then its value rows; here keys are turned for absorption.

    Ours are k_up (heads, kv_rank, nope) and v_up (heads, value, kv_rank).
    """

    def stored_shape(self, sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """See `Form.stored_shape`."""
        (heads, rank, nope), (_, value, _) = sizes
        return heads * (nope + value), rank

    def split(self, stored: Tensor, sizes: list[tuple[int, ...]], config: ModelConfig) -> list[Tensor]:
        """See `Form.split`."""
        keys, _ = sizes
        heads = stored.reshape(keys[0], -1, stored.shape[-1])
        return [heads[:, : keys[2]].transpose(1, 2).contiguous(), heads[:, keys[2] :].contiguous()]

    def join(self, parts: list[Tensor], config: ModelConfig) -> Tensor:
        """See `Form.join`."""
        keys, values = parts
        heads, rank, nope = keys.shape
        out = keys.new_empty((heads, nope + values.shape[1], rank))
        out[:, :nope] = keys.transpose(1, 2)
        out[:, nope:] = values
        return out.reshape(-1, rank)


ROWS: Form = Rows()
PLUS_ONE: Form = PlusOne()
LATENT_UP: Form = LatentUp()
PAIRED_QUERIES: Form = Paired(lambda c: (c.heads, 0, c.ropes[0].dim))
PAIRED_KEYS: Form = Paired(lambda c: (c.kv_heads, 0, c.ropes[0].dim))
