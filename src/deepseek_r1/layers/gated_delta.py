"""Gated-delta linear attention: a layer whose memory of a sequence is one matrix per head, however long it grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import AttentionContext, StateLayout
from deepseek_r1.layers.linear import Linear, LinearGroup
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.rope import Rotary

L2_EPS = 1e-6


class GatedDelta(nn.Module):
    """Gated DeltaNet (Yang et al. 2024), in the form of Qwen3-Next; it stands where `Attention` stands in a block.

    q, k and v pass a causal convolution of `conv_kernel` taps and silu; each key head serves a group of value heads,
    and each value head keeps a matrix (key_dim, value_dim) that decays by exp(g) and takes v over to k with rate beta.
    The state of a sequence is that and the convolution's last inputs, in float32, as are the convolution and the rule.
    """

    def __init__(
        self,
        layer_index: int,
        *,
        dim: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        norm_eps: float,
        conv_kernel: int = 4,
        linear_dtype: torch.dtype,
        norm_dtype: torch.dtype,
        activation_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if value_heads % key_heads:
            raise ValueError("value_heads is a multiple of key_heads")
        self.layer_index = layer_index
        self.key_heads, self.value_heads = key_heads, value_heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.activation_dtype = activation_dtype
        keys, values = key_heads * key_dim, value_heads * value_dim
        channels = 2 * keys + values
        self.layout = StateLayout(
            ((conv_kernel - 1, channels), (value_heads, key_dim, value_dim)),
            torch.float32,
        )
        widths = {
            "q_proj": keys,
            "k_proj": keys,
            "v_proj": values,
            "gate_proj": values,
            "beta_proj": value_heads,
            "decay_proj": value_heads,
        }
        self.inputs = LinearGroup({name: Linear(dim, width, dtype=linear_dtype) for name, width in widths.items()})
        self.conv_weight = nn.Parameter(torch.empty(channels, conv_kernel, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(value_heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(value_heads, dtype=torch.float32))
        self.norm = RMSNorm(value_dim, norm_eps, dtype=norm_dtype)
        self.o_proj = Linear(values, dim, dtype=linear_dtype)

    def forward(self, x: Tensor, rotary: Rotary | None, ctx: AttentionContext) -> Tensor:
        """x (T, dim) -> (T, dim). `rotary` is not used: the recurrence knows the order of tokens."""
        q, k, v, gate, b, a = self.inputs(x)
        beta = b.float().sigmoid()
        g = -self.A_log.exp() * F.softplus(a.float() + self.dt_bias)
        mixed = torch.cat((q, k, v), dim=-1).float()
        vectors = ctx.scan(self.layer_index, self.layout, self._step, mixed, g, beta)  # (T, heads, value_dim)
        gate = gate.view(vectors.shape).to(self.activation_dtype)
        gated = ops.gated("silu", gate, self.norm(vectors).to(self.activation_dtype))
        return self.o_proj(gated.flatten(1))  # type: ignore[no-any-return]

    def _step(
        self, states: tuple[Tensor, ...], mixed: Tensor, g: Tensor, beta: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """mixed (B, L, channels), g and beta (B, L, value_heads) -> (B, L, value_heads, value_dim)."""
        tail, state = states
        mixed, tail = ops.causal_conv(mixed, tail, self.conv_weight)
        keys = self.key_heads * self.key_dim
        batch, length, channels = mixed.shape
        q, k, v = torch.split(F.silu(mixed), [keys, keys, channels - 2 * keys], dim=-1)
        q = ops.l2_norm(q.view(batch, length, self.key_heads, self.key_dim), L2_EPS) * self.key_dim**-0.5
        k = ops.l2_norm(k.view(batch, length, self.key_heads, self.key_dim), L2_EPS)
        v = v.view(batch, length, self.value_heads, self.value_dim)
        out, state = ops.gated_delta(q, k, v, g, beta, state)
        return out, (tail, state)
