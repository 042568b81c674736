"""The plain-torch truth of every operator: what an optimised kernel has to equal. Shapes are documented in `ops`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias."""
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 inside, as Llama defines it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotary(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of positions * frequencies, for both halves of a head."""
    angles = positions.float().unsqueeze(-1) * frequencies  # (T, dim / 2)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    tables = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return tables[0].unsqueeze(1).to(dtype), tables[1].unsqueeze(1).to(dtype)


def add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """x + scale * y."""
    return x + (y if scale == 1.0 else y * scale).to(x.dtype)


def scaled(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * x."""
    return x.to(dtype) * scale


def rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate the halves of each head: x * cos + swap_halves(x) * signed_sin."""
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat((rope(x[..., :rotated], cos, signed_sin), x[..., rotated:]), dim=-1)
    return x * cos + x.roll(rotated // 2, -1) * signed_sin


def gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up."""
    return (F.gelu(gate, approximate="tanh") if activation == "gelu_tanh" else F.silu(gate)) * up


def head_linear(x: Tensor, weight: Tensor) -> Tensor:
    """One matrix product per head."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def expert_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """torch's grouped product: one call, whose time grows with the experts that have rows (docs/LOG.md).

    It wants rows of whole 16 bytes; of other widths, which no published model has, padded copies are made.
    """
    columns, inner = weight.shape[1:]
    unit = 16 // weight.element_size()
    if columns % unit or inner % unit:
        x = F.pad(x, (0, -inner % unit))
        weight = F.pad(weight, (0, -inner % unit, 0, -columns % unit))
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)[:, :columns]
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


def scores(logits: Tensor, kind: str) -> Tensor:
    """Sigmoid or softmax of each row."""
    return logits.sigmoid() if kind == "sigmoid" else logits.softmax(-1)


def route(scores: Tensor, bias: Tensor | None, active: int, groups: int, active_groups: int) -> Tensor:
    """Choose by score plus bias, within the best groups. Stable sorts let ties go to the lower id."""
    choice = scores if bias is None else scores + bias
    tokens, experts = choice.shape
    if groups > 1:
        grouped = choice.view(tokens, groups, experts // groups)
        best = grouped.amax(-1) if bias is None else grouped.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, _largest(best, active_groups), True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).view(tokens, experts)
    return _largest(choice, active).sort(-1).values


def _largest(values: Tensor, count: int) -> Tensor:
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def route_weights(scores: Tensor, chosen: Tensor, normalise: bool, scale: float) -> Tensor:
    """The chosen scores, divided by their sum, times the scale."""
    weights = scores.gather(1, chosen)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale


def by_expert(chosen: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A stable sort of the choices, undone by scattering."""
    counts = torch.bincount(chosen.reshape(-1), minlength=len(totals))
    totals += counts
    order = chosen.reshape(-1).argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order // chosen.shape[1], places.view(chosen.shape), counts.cumsum(0, dtype=torch.int32)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Not x[index]: where a row is taken twice, its gradient would be added up in any order, and so would its bits."""
    return x.index_select(0, index)


def combine(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Slot after slot."""
    parts = x[places].float() * weights.unsqueeze(-1)  # (T, active, dim)
    total = parts[:, 0]
    for slot in range(1, parts.shape[1]):
        total = total + parts[:, slot]
    return total


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """Grouped-query attention through torch's fused kernel, without copying the keys per query head."""
    batch, heads, length, dim = q.shape
    kv_heads, value_dim = k.shape[1], v.shape[-1]
    group = heads // kv_heads
    if length == 1:
        # The query heads of one key head stand as rows of one query block: one pass over the keys serves them all.
        folded = q.reshape(batch, kv_heads, group, dim)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
    else:
        folded = q.reshape(batch * kv_heads, group, length, dim)
        keys = k.reshape(batch * kv_heads, 1, *k.shape[2:]).expand(-1, group, -1, -1)
        values = v.reshape(batch * kv_heads, 1, *v.shape[2:]).expand(-1, group, -1, -1)
        if mask is not None and batch > 1:
            mask = mask.expand(batch, -1, -1, -1).repeat_interleave(kv_heads, dim=0)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
    return out.reshape(batch, heads, length, value_dim)


def int8_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Heads x (..., D) -> codes (..., D) in int8 and scales (..., 1) in float32: the largest magnitude / 127.

    A head that holds an infinity or a NaN has codes of zero and a scale that is NaN.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    finite = x.isfinite().all(-1, keepdim=True)
    codes = torch.where(finite & (scale > 0), x / scale, 0.0).round().clamp(-127, 127).to(torch.int8)
    return codes, torch.where(finite, scale, math.nan)


def kv_write(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    """pool.view(-1, width)[slots] = rows."""
    pool.view(-1, pool.shape[-1]).index_copy_(0, slots, rows)


def kv_gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """The rows of these blocks, one after the other."""
    sequences, count = blocks.shape
    rows = pool.view(pool.shape[0], -1).index_select(0, blocks.reshape(-1))
    return rows.view(sequences, count * pool.shape[1], pool.shape[2])
