"""The native kernels of gradients as functions of tensors, checked as `native` checks its own. See csrc/gradient.h."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.kernels import native

_library: Any = native.library


class Families:
    """Sequences laid end to end, some of which go on from the end of another: how attention may look back.

    `lengths` are the sequences' rows. `prefixes` names the sequence that each goes on from (None: it stands alone);
    that one stands alone itself.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[int | None]) -> None:
        self.lengths, self.prefixes = tuple(lengths), tuple(prefixes)
        self.starts = tuple(itertools.accumulate(self.lengths, initial=0))[:-1]
        members: dict[int, list[int]] = {i: [] for i, prefix in enumerate(self.prefixes) if prefix is None}
        for i, prefix in enumerate(self.prefixes):
            if prefix is not None:
                if prefix not in members:
                    raise ValueError(f"sequence {i} goes on from {prefix}, which doesn't stand alone")
                members[prefix].append(i)
        order = [i for root, others in members.items() for i in (root, *others)]
        rows = [(self.starts[i], self.lengths[i]) for i in order]
        self.sequences = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
        sizes = torch.tensor([0, *(1 + len(others) for others in members.values())], dtype=torch.int64)
        self.ends = sizes.cumsum(0)

    def before(self, index: int) -> int:
        """Positions that a sequence goes on from."""
        prefix = self.prefixes[index]
        return 0 if prefix is None else self.lengths[prefix]

    def rows(self, index: int) -> Tensor:
        """The rows that a sequence's last one sees (position,) int64: those it goes on from, then its own."""
        own = torch.arange(self.starts[index], self.starts[index] + self.lengths[index])
        prefix = self.prefixes[index]
        return own if prefix is None else torch.cat((self.rows(prefix), own))


def gated(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of silu(gate) * up, all of one dtype, side by side in one tensor (..., 2 * dim)."""
    (g, g_step), (x, x_step), (y, y_step) = native.rows(grad), native.rows(gate), native.rows(up)
    dim = gate.shape[-1]
    out = torch.empty(*gate.shape[:-1], 2 * dim, dtype=gate.dtype)
    parts = out[..., :dim], out[..., dim:]
    _library.gated_gradient(
        native.address(g, x.dtype),
        native.address(x, *native.FLOATS),
        native.address(y, x.dtype),
        x.dtype is torch.bfloat16,
        *(*x.shape, g_step, x_step, y_step),
        *(native.address(part) for part in parts),
        2 * dim,
    )
    return parts


def rms_norm(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of x (..., dim) in `ops.rms_norm`, in x's dtype."""
    g, *g_sizes = native.by_head(grad)
    flat, *sizes = native.by_head(x)
    out = torch.empty(x.shape, dtype=x.dtype)
    bf16 = torch.bfloat16
    _library.norm_gradient(
        *(native.address(g, *native.FLOATS), g.dtype is bf16, *g_sizes[-2:]),
        *(native.address(flat, *native.FLOATS), flat.dtype is bf16, *sizes),
        *(native.address(weight, *native.FLOATS), weight.dtype is bf16, eps, native.address(out)),
    )
    return out


def attention_gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, families: Families, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (T, H, D), k (T, K, D) and v (T, K, D_v) in causal attention, in float32.

    `grad` (T, H, D_v) is the gradient of its result; the rows are those of `families`.
    """
    wide = [native.by_head(x.float()) for x in (q, k, v, grad)]
    tokens, heads, key_dim = q.shape
    kv_heads, value_dim = v.shape[1:]
    out = tuple(torch.empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    _library.attention_gradient(
        *(number for flat, *sizes in wide for number in (native.address(flat, torch.float32), *sizes[-2:])),
        *(tokens, heads, kv_heads, key_dim, value_dim),
        *(native.address(families.sequences, torch.int64), len(families.sequences)),
        *(native.address(families.ends, torch.int64), len(families.ends) - 1),
        *(window or 0, scale, *(native.address(part) for part in out)),
    )
    return out  # type: ignore[return-value]
