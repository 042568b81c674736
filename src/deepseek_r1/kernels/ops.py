"""The one door to all kernels: signatures, shapes and dtypes. Native kernels where they are built, else plain torch.

Notation: T tokens, H query heads, K key heads, D head width, L key positions, N blocks of S token slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_r1.kernels import delta_reference, gradients, grouped, native, reference, sampling
from deepseek_r1.kernels.backward import Families as Families
from deepseek_r1.kernels.backward import attention_gradient as attention_gradient
from deepseek_r1.kernels.delta_reference import l2_norm as l2_norm
from deepseek_r1.kernels.gradients import Low as Low
from deepseek_r1.kernels.gradients import differentiable as differentiable
from deepseek_r1.kernels.gradients import needed as needed
from deepseek_r1.kernels.gradients import parts as parts
from deepseek_r1.kernels.gradients import with_gradient as with_gradient
from deepseek_r1.kernels.grouped import PackedStack as PackedStack
from deepseek_r1.kernels.native import peak as peak
from deepseek_r1.kernels.native import read_bandwidth as read_bandwidth
from deepseek_r1.kernels.native import set_threads as set_threads
from deepseek_r1.kernels.native import threads as threads
from deepseek_r1.kernels.packed import LAYOUT_VERSION as LAYOUT_VERSION
from deepseek_r1.kernels.packed import PackedWeight as PackedWeight
from deepseek_r1.kernels.reference import int8_heads as int8_heads
from deepseek_r1.kernels.sampling import Filter as Filter
from deepseek_r1.kernels.spans import Spans

NATIVE = native.library is not None
"""Whether the native kernels are there and wanted."""

PATH = native.library.path() if NATIVE else "torch"
"""Name of the instruction-set path. It stands wherever a promise of equal bits is recorded."""


def natively(*tensors: Tensor) -> bool:
    """Whether the native kernels can read all of these."""
    return NATIVE and all(t.dtype in native.FLOATS and t.device.type == "cpu" for t in tensors)


def _natively_in_float32(x: Tensor) -> bool:
    return natively(x) and x.dtype is torch.float32


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out) in the weight's dtype, in which it is computed.

    Packed weights in 8 and 4 bits give float32. They are frozen: gradients flow to x alone, straight through what the
    kernel rounds.
    """
    if isinstance(weight, PackedWeight):
        return gradients.product(weight, x, None, bias)
    return reference.linear(x if x.dtype == weight.dtype else x.to(weight.dtype), weight, bias)


def trained_linear(x: Tensor, master: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x (..., in) -> (..., out) by `packed`, which holds the values of `master` (out, in) float32, which learns."""
    return gradients.product(packed, x, master, bias)


def adapted_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, parts: Sequence[Low]) -> Tensor:
    """x (..., in) -> (..., out): a frozen product and what low-rank parts add to it, differentiable, in one.

    The numbers are those of the products and additions one by one. Native kernels only.
    """
    return gradients.adapted(weight, x, bias, parts)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., dim), weight (dim,) -> (..., dim) in the weight's dtype (Zhang & Sennrich 2019)."""

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return reference.rms_norm(x.to(weight.dtype), weight, eps)

    if natively(x, weight):
        return gradients.normed(lambda x, weight: native.rms_norm(x, weight, eps), x, weight, eps)
    return formula(x, weight)


def rotary(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin of positions (T,) int64 times frequencies (R / 2,), times `factor`: each (T, 1, R).

    The first half of the sin carries the minus sign of the rotation.
    """
    if natively(frequencies):
        return native.rotary(positions, frequencies, factor, dtype)
    return reference.rotary(positions, frequencies, factor, dtype)


def rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary embedding on x (T, heads, D), halves convention.

    `cos` and `signed_sin` are (T, 1, R) with R <= D: the first R columns are rotated, the others stay as they are. The
    first half of `signed_sin` carries the minus sign of the rotation.
    """

    def formula(x: Tensor) -> Tensor:
        return reference.rope(x.to(cos.dtype), cos, signed_sin)

    if natively(x, cos):
        return gradients.turned(native.rope, x, cos, signed_sin)
    return formula(x)


def gated(activation: str, gate: Tensor, up: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """activation(gate) * up, both (..., dim), in `dtype` (None: theirs); `activation` is "silu" or "gelu_tanh"."""
    dtype = gate.dtype if dtype is None else dtype

    def formula(gate: Tensor, up: Tensor) -> Tensor:
        return reference.gated(activation, gate.to(dtype), up.to(dtype))

    if natively(gate, up) and gate.dtype == up.dtype == dtype:
        run = lambda gate, up: native.gated(activation, gate, up, dtype)  # noqa: E731
        return gradients.swish(run, gate, up) if activation == "silu" else differentiable(run, formula, gate, up)
    return formula(gate, up)


def gated_linear(activation: str, x: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """activation(gate) * up of x (T, in) @ weight (2 * dim, in)^T + bias, whose halves gate and up are -> (T, dim).

    Where the kernel has both in one, the numbers are those of one after the other.
    """
    if weight.fuses_gate and dtype is torch.float32 and not needed(x, bias):
        return weight.gated(x, bias, activation)
    gate, up = parts(linear(x, weight, bias), [weight.out_features // 2] * 2)
    return gated(activation, gate, up, dtype)


def add(x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """x + scale * y, both (..., dim), in x's dtype."""

    def formula(x: Tensor, y: Tensor) -> Tensor:
        return reference.add(x, y, scale)

    if natively(x, y):
        return gradients.added(lambda x, y: native.add(x, y, scale), x, y, scale)
    return formula(x, y)


def add_into(x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    """x + scale * y, both (rows, dim), written over x. Not differentiable."""
    if natively(x, y):
        native.add_into(x, y, scale)
    else:
        x.copy_(reference.add(x, y, scale))


def scaled(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * x (..., dim) in `dtype`: x itself where that changes nothing."""
    if scale == 1.0 and x.dtype == dtype:
        return x
    if natively(x) and dtype in native.FLOATS:
        return differentiable(
            lambda x: native.copy(x, None, scale, dtype), lambda x: reference.scaled(x, scale, dtype), x
        )
    return reference.scaled(x, scale, dtype)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (n,) int64 of x (rows, dim) -> (n, dim). The caller answers for the index."""
    if natively(x):
        return differentiable(lambda x: native.copy(x, index, 1.0, x.dtype), lambda x: reference.take_rows(x, index), x)
    return reference.take_rows(x, index)


def join(*parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts (..., n) whose other sizes agree, side by side -> (..., sum of n) in `dtype`."""

    def formula(*parts: Tensor) -> Tensor:
        return torch.cat([part.to(dtype) for part in parts], dim=-1)

    if natively(*parts) and dtype in native.FLOATS:
        return differentiable(lambda *parts: native.join(parts, dtype), formula, *parts)
    return formula(*parts)


def head_linear(x: Tensor, weight: Tensor | PackedStack) -> Tensor:
    """Each head's own linear map: x (T, H, in), weight (H, out, in) -> (T, H, out) in the weight's dtype."""
    if isinstance(weight, PackedStack):
        return differentiable(weight.heads, lambda x: reference.head_linear(x.to(weight.dtype), weight.values()), x)
    return reference.head_linear(x.to(weight.dtype), weight)


def expert_linear(x: Tensor, weight: Tensor | PackedStack, ends: Tensor) -> Tensor:
    """Each expert's own linear map: x (N, in) sorted by expert, weight (E, out, in) -> (N, out).

    Rows ends[e - 1] to ends[e] (int32) are expert e's, and the last end is N. An expert without rows costs nothing.
    """
    if isinstance(weight, PackedStack):

        def formula(x: Tensor) -> Tensor:
            return reference.expert_linear(x.to(weight.dtype), weight.values(), ends)

        return differentiable(lambda x: weight.experts(x, ends), formula, x)
    return reference.expert_linear(x.to(weight.dtype), weight, ends)


def scores(logits: Tensor, kind: str) -> Tensor:
    """What experts are chosen by and weighed with: "sigmoid" or "softmax" of each row of logits (T, E) in float32."""

    def formula(logits: Tensor) -> Tensor:
        return reference.scores(logits, kind)

    if _natively_in_float32(logits):
        return differentiable(lambda logits: grouped.scores(logits, kind), formula, logits)
    return formula(logits)


def route(
    scores: Tensor,
    bias: Tensor | None,
    active: int,
    *,
    groups: int = 1,
    active_groups: int = 1,
) -> Tensor:
    """The experts of each token: scores (T, E), bias (E,), float32 -> (T, active) expert ids in ascending order.

    The bias is added for the choice alone. With `groups` > 1 only experts of the best `active_groups` groups are
    chosen from; a group is judged by its best expert, or with a bias by the sum of its best two (DeepSeek-V2, V3).
    Among equals the lower id is chosen.
    """
    if _natively_in_float32(scores):
        return grouped.route(scores.detach(), bias, active, groups, active_groups)
    return reference.route(scores, bias, active, groups, active_groups)


def route_weights(scores: Tensor, chosen: Tensor, *, normalise: bool, scale: float) -> Tensor:
    """What a token's experts count: scores (T, E) of `chosen` (T, active) ids -> (T, active), times `scale`.

    `normalise` divides them by their sum first, added up in the order of the ids. The caller answers for the ids.
    """

    def formula(scores: Tensor) -> Tensor:
        return reference.route_weights(scores, chosen, normalise, scale)

    if _natively_in_float32(scores):
        return differentiable(lambda scores: grouped.route_weights(scores, chosen, normalise, scale), formula, scores)
    return formula(scores)


def by_expert(chosen: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The order of all choices (T, active) by expert, and within an expert by token; `totals` (E,) int64 grows by them.

    Returns the token of each row (T * active,), each choice's row (T, active), and where each expert's rows end (E,),
    int32, as `expert_linear` takes it.
    """
    if NATIVE and chosen.device.type == totals.device.type == "cpu":
        return grouped.by_expert(chosen, totals)
    return reference.by_expert(chosen, totals)


def combine(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Each token's sum of rows of x (N, dim): places and weights (T, active) -> (T, dim) in float32.

    A row is multiplied by its weight, and the products are added in the order of the slots.
    """

    def formula(x: Tensor, weights: Tensor) -> Tensor:
        return reference.combine(x, places, weights)

    if natively(x, weights):
        return differentiable(lambda x, weights: grouped.combine(x, places, weights), formula, x, weights)
    return formula(x, weights)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """q (B, H, L_q, D), k (B, K, L, D), v (B, K, L, D_v) -> (B, H, L_q, D_v); H is a multiple of K.

    `mask` is boolean (True = attend) and broadcasts to (B, 1, L_q, L). `causal` needs L_q = L.
    """
    return reference.attention(q, k.to(q.dtype), v.to(q.dtype), scale, mask, causal)


def int8_rounded(x: Tensor) -> Tensor:
    """Heads x (..., D) as a cache in int8 gives them back, in float32. Gradients pass straight through."""
    codes, scale = int8_heads(x.detach())
    rounded = codes.float() * scale
    return x + (rounded - x.detach()) if needed(x) else rounded


def kv_write(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Store rows (T, width) at slots (T,) of pool (N, S, width): slot = block * S + offset."""
    reference.kv_write(pool, slots, rows)


def kv_gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """The rows of blocks (B, n) of pool (N, S, width) -> (B, n * S, width)."""
    return reference.kv_gather(pool, blocks)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    pool: Tensor,
    spans: Spans,
    *,
    value_dim: int,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Store the spans' k (T, K, D) and v (T, K, D_v) in `pool` (N, S, width), then attend causally to what it holds.

    q (T, H, D) -> (T, H, D_v). Without v the values are the first D_v columns of the one key head. A query sees the
    positions up to its own, with `window` the last `window` of them. Native kernels only; not differentiable.
    """
    layout = native.row_layout(pool.dtype, k.shape[1], k.shape[2], value_dim, v is None)
    native.kv_write(pool, layout, spans.slots, k, v)
    return native.attention(q, pool, layout, value_dim, spans, window or 0, scale)


def embedding(ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Rows ids (T,) of weight (vocabulary, dim) -> (T, dim). The caller has checked the ids."""
    if isinstance(weight, PackedWeight):
        return weight.rows(ids)
    if natively(weight) and not torch.is_grad_enabled():
        return native.copy(weight, ids, 1.0, weight.dtype)
    return torch.nn.functional.embedding(ids, weight)


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


# What the engine's sampler asks of logits (B, vocabulary). Where there is no torch formula, see `samples_natively`.


def samples_natively(logits: Tensor) -> bool:
    """Whether the native sampling kernels can read these logits; the sampler has its own way in torch otherwise."""
    return sampling.readable(logits)


def argmax(logits: Tensor) -> Tensor:
    """The first of each row's largest logits: (B, vocabulary) -> (B,) int64. Native kernels pass over NaNs."""
    return sampling.argmax(logits, None) if samples_natively(logits) else logits.argmax(-1)


def log_sum_exp(logits: Tensor) -> Tensor:
    """log(sum(exp(row))) in float64: (B, vocabulary) -> (B,)."""
    return sampling.log_sum_exp(logits) if samples_natively(logits) else torch.logsumexp(logits.double(), -1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax of each row at its token: logits (T, vocabulary), tokens (T,) -> (T,) float64, differentiable.

    The numbers are those that the engine's sampler reports.
    """
    return gradients.token_logprobs(logits, tokens)


def logprobs(logits: Tensor, rows: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities in float64 in rows `rows` (n,) of the logits: of `tokens` (n,), and of the `count` likeliest.

    -> (n,), and the likeliest ones' ids (n, count) and values (n, count), likeliest first, among equals the lower id.
    Where a row has fewer numbers than `count`, the ids end with -1. Native only: see `samples_natively`.
    """
    return sampling.logprobs(logits, rows, tokens, count)


def draw(logits: Tensor, rows: Tensor, filters: Sequence[Filter], uniform: Sequence[float]) -> Tensor:
    """One token (n,) from each row of `rows` (n,), filtered, by inverting the sum of chances at `uniform` in [0, 1).

    The sum runs over what the filter leaves, ids ascending. Native only: see `samples_natively`.
    """
    return sampling.draw(logits, rows, filters, uniform)


def candidates(row: Tensor, chosen: Filter) -> tuple[Tensor, Tensor]:
    """What the filter leaves of a row (vocabulary,): ids ascending, and chances relative to the largest, in float64.

    A token whose chance is 0 is left out. Native only: see `samples_natively`.
    """
    return sampling.candidates(row, chosen)


def uniform(key: int, choice: int, position: int) -> float:
    """The number in [0, 1) that the sampler makes of Philox-4x64-10. Native only: see `NATIVE`."""
    return sampling.uniform(key, choice, position)
