"""The plain-torch truth of gated-delta linear attention and its short convolution. Shapes are documented in `ops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens solved at once: work within a chunk grows with its square, work between chunks with their number."""


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(sum of squares + eps) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def causal_conv(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A sum over the taps, so that a row's result doesn't depend on how many there are."""
    length, before = x.shape[1], tail.shape[1]
    x = torch.cat((tail, x), dim=1)
    out = sum((x[:, tap : tap + length] * weight[:, tap] for tap in range(1, before + 1)), x[:, :length] * weight[:, 0])
    return out, x[:, length:]


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence for one token, its chunked form for more; in float32."""
    group = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(group, dim=2), k.repeat_interleave(group, dim=2)
    # (B, L, H, ...) -> (B, H, L, ...)
    q, k, v, g, beta = (x.float().transpose(1, 2) for x in (q, k, v, g, beta))
    form = _one_token if v.shape[2] == 1 else _chunked
    out, state = form(q, k, v, g, beta.unsqueeze(-1), state.float())
    return out.transpose(1, 2), state


def _one_token(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    state = state * g.exp().unsqueeze(-1)
    state = state + k.transpose(-1, -2) @ (beta * (v - k @ state))
    return q @ state, state


def _chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks of tokens by matrix products (Yang et al. 2024, with the decay of Gated DeltaNet).

    Let c_t be the decay from the chunk's start to t, and S the state there. Token t adds k_t u_t^T with
    u_t = beta_t (v_t - c_t S^T k_t - sum over i < t of c_t / c_i (k_t . k_i) u_i), a triangular system for all u at
    once, which is linear in S: U = W_v - W_k S. Padding has k = beta = 0 and changes nothing.
    """
    batch, heads, length, _ = v.shape
    size = min(CHUNK, length)
    pad = -length % size
    q, k, v, beta = (
        F.pad(x, (0, 0, 0, pad)).reshape(batch, heads, -1, size, x.shape[-1]) for x in (q, k, v, beta)
    )  # (B, H, chunks, size, ...)
    g = F.pad(g, (0, pad)).reshape(batch, heads, -1, size)
    # In float64, because one strong decay would leave the differences behind it few digits.
    total = g.double().cumsum(-1)
    future = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).float().masked_fill(future, -torch.inf).exp()
    since_start = total.float().exp().unsqueeze(-1)
    until_end = (total[..., -1:] - total).float().exp().unsqueeze(-1)

    # The solver takes the diagonal for ones and doesn't look above it.
    system = beta * (k @ k.transpose(-1, -2)) * between
    w_v = torch.linalg.solve_triangular(system, beta * v, upper=False, unitriangular=True)
    w_k = torch.linalg.solve_triangular(system, beta * since_start * k, upper=False, unitriangular=True)
    within = (q @ k.transpose(-1, -2)) * between
    q, k_end = q * since_start, (k * until_end).transpose(-1, -2)
    out = []
    for chunk in range(v.shape[2]):
        u = w_v[:, :, chunk] - w_k[:, :, chunk] @ state
        out.append(q[:, :, chunk] @ state + within[:, :, chunk] @ u)
        state = state * since_start[:, :, chunk, -1:] + k_end[:, :, chunk] @ u
    return torch.cat(out, dim=2)[:, :, :length], state
