"""The one door to all kernels: signatures, shapes and dtypes. Plain torch today; native kernels override it here.

Notation: T tokens, H query heads, K key heads, D head width, L key positions, N blocks of S token slots.
"""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from deepseek_r1.kernels import delta_reference, reference

PATH = "torch"
"""Name of the instruction-set path. It stands wherever a promise of equal bits is recorded."""

LAYOUT_VERSION = 1
"""Version of the KV row layout and of packed weights; part of every cache key."""


ROWS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of rows that packed products are computed with; beyond the last, its multiples.

oneDNN compiles and keeps code and scratch memory for every number of rows it meets (0.6 MB each for a 576-wide model):
a server that meets them all would grow without end. Four rows also read the weights faster than one (docs/LOG.md).
"""


def padded_rows(rows: int) -> int:
    """The number of rows that a product of `rows` rows is computed with."""
    place = bisect.bisect_left(ROWS, rows)
    return ROWS[place] if place < len(ROWS) else -(-rows // ROWS[-1]) * ROWS[-1]


class PackedWeight:
    """A frozen weight (out, in) reordered once into the layout that the CPU's GEMM reads, in place of the plain one.

    oneDNN's packed layout reads weights at about twice the bandwidth of torch's own linear on the CPUs measured
    (docs/LOG.md), and the same packed bytes serve every number of rows.
    """

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.nbytes = weight.numel() * weight.element_size()
        packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if packs and weight.dtype is torch.bfloat16:
            packs = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._packed = packs
        # 16 rows: the layout that this hint selects measured fastest, or equal, from 1 to 256 rows.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 16) if packs else weight

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out), in the weight's dtype. Not differentiable with respect to the weight."""
        if self._packed:
            flat = x.reshape(-1, self.in_features)
            rows = flat.shape[0]
            extra = padded_rows(rows) - rows
            if extra:
                flat = torch.nn.functional.pad(flat, (0, 0, 0, extra))
            out: Tensor = torch.ops.mkldnn._linear_pointwise.default(flat, self._weight, bias, "none", [], "")
            return out[:rows].view(*x.shape[:-1], self.out_features)
        return reference.linear(x, self._weight, bias)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out). x is brought to the weight's dtype first."""
    if x.dtype != weight.dtype:
        x = x.to(weight.dtype)
    return weight.linear(x, bias) if isinstance(weight, PackedWeight) else reference.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., dim), weight (dim,) -> (..., dim) in the weight's dtype (Zhang & Sennrich 2019)."""
    return reference.rms_norm(x.to(weight.dtype), weight, eps)


def rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary embedding on x (T, heads, D), halves convention.

    `cos` and `signed_sin` are (T, 1, R) with R <= D: the first R columns are rotated, the others stay as they are. The
    first half of `signed_sin` carries the minus sign of the rotation.
    """
    return reference.rope(x.to(cos.dtype), cos, signed_sin)


def gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up, both (..., dim); `activation` is "silu" or "gelu_tanh"."""
    return reference.gated(activation, gate, up)


def head_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own linear map: x (T, H, in), weight (H, out, in) -> (T, H, out) in the weight's dtype."""
    return reference.head_linear(x.to(weight.dtype), weight)


def expert_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each expert's own linear map: x (N, in) sorted by expert, weight (E, out, in) -> (N, out).

    Rows ends[e - 1] to ends[e] (int32) are expert e's. An expert without rows costs nothing.
    """
    return reference.expert_linear(x.to(weight.dtype), weight, ends)


def route(
    scores: Tensor,
    bias: Tensor | None,
    active: int,
    *,
    groups: int = 1,
    active_groups: int = 1,
) -> Tensor:
    """The experts of each token: scores (T, E), bias (E,) -> (T, active) expert ids in ascending order.

    The bias is added for the choice alone. With `groups` > 1 only experts of the best `active_groups` groups are
    chosen from; a group is judged by its best expert, or with a bias by the sum of its best two (DeepSeek-V2, V3).
    """
    return reference.route(scores, bias, active, groups, active_groups)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """q (B, H, L_q, D), k (B, K, L, D), v (B, K, L, D_v) -> (B, H, L_q, D_v); H is a multiple of K.

    `mask` is boolean (True = attend) and broadcasts to (B, 1, L_q, L). `causal` needs L_q = L.
    """
    return reference.attention(q, k.to(q.dtype), v.to(q.dtype), scale, mask, causal)


def kv_write(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Store rows (T, width) at slots (T,) of pool (N, S, width): slot = block * S + offset."""
    reference.kv_write(pool, slots, rows)


def kv_gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """The rows of blocks (B, n) of pool (N, S, width) -> (B, n * S, width)."""
    return reference.kv_gather(pool, blocks)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows ids (T,) of weight (vocabulary, dim) -> (T, dim)."""
    return torch.nn.functional.embedding(ids, weight)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x (..., dim) / sqrt(sum of squares + eps)."""
    return delta_reference.l2_norm(x, eps)


def causal_conv(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Causal convolution of each channel: x (B, L, C), weight (C, taps) -> (B, L, C), and the next call's tail.

    `tail` (B, taps - 1, C) holds the inputs before x, zeros at a sequence's start; the last tap is the row's own.
    """
    return delta_reference.causal_conv(x, tail, weight)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The gated delta rule (Yang et al. 2024): per token, S = e^g S; S = S + k (beta (v - S^T k))^T; out = S^T q.

    q, k (B, L, K, D), v (B, L, H, D_v), log decay g <= 0 and rate beta (B, L, H), state S (B, H, D, D_v)
    -> (B, L, H, D_v) and the state behind the last token, in float32. H is a multiple of K, k has norm 1 at most.
    """
    return delta_reference.gated_delta(q, k, v, g, beta, state)
