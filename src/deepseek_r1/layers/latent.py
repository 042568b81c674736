"""Multi-head latent attention (DeepSeek-V2, Liu et al. 2024): one latent per token is all that is cached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import AttentionContext, KVLayout
from deepseek_r1.layers.linear import Linear
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.rope import Rotary


class HeadLinear(nn.Module):
    """A linear map of its own for each head, without bias."""

    def __init__(self, heads: int, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, out_features, in_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (T, heads, in_features) -> (T, heads, out_features)."""
        return ops.head_linear(x, self.weight)


class PackedHeadLinear(nn.Module):
    """A frozen `HeadLinear` whose weights stand in the kernel's packed layout."""

    def __init__(self, weight: ops.PackedStack) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def of(cls, linear: HeadLinear) -> PackedHeadLinear:
        """`linear`, packed."""
        return cls(ops.PackedStack(linear.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """x (T, heads, in_features) -> (T, heads, out_features)."""
        return ops.head_linear(x, self.weight)


class LatentAttention(nn.Module):
    """Attention over a shared latent, in the absorbed form.

    A head's keys are `k_up.T @ latent` beside one rotated key that all heads share, its values `v_up @ latent`. Since
    q . (k_up.T @ latent) = (k_up @ q) . latent, the query is brought to the latent's space instead: one key head of
    width kv_rank + rope_dim whose first kv_rank columns are the values. The expanded keys never exist.
    """

    def __init__(
        self,
        layer_index: int,
        *,
        dim: int,
        heads: int,
        q_rank: int | None,
        kv_rank: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        layout: KVLayout,
        qkv_bias: bool,
        output_bias: bool,
        norm_eps: float,
        scale: float,
        linear_dtype: torch.dtype,
        norm_dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.heads = heads
        self.kv_rank, self.nope_dim, self.rope_dim = kv_rank, nope_dim, rope_dim
        self.layout = layout
        self.scale = scale
        self.compute_dtype = compute_dtype
        queries = heads * (nope_dim + rope_dim)
        self.q_proj: Linear | None = None
        if q_rank is None:
            self.q_proj = Linear(dim, queries, dtype=linear_dtype)
        else:
            self.q_a_proj = Linear(dim, q_rank, bias=qkv_bias, dtype=linear_dtype)
            self.q_a_norm = RMSNorm(q_rank, norm_eps, dtype=norm_dtype)
            self.q_b_proj = Linear(q_rank, queries, dtype=linear_dtype)
        self.kv_a_proj = Linear(dim, kv_rank + rope_dim, bias=qkv_bias, dtype=linear_dtype)
        self.kv_a_norm = RMSNorm(kv_rank, norm_eps, dtype=norm_dtype)
        self.k_up = HeadLinear(heads, nope_dim, kv_rank, dtype=linear_dtype)
        self.v_up = HeadLinear(heads, kv_rank, value_dim, dtype=linear_dtype)
        self.o_proj = Linear(heads * value_dim, dim, bias=output_bias, dtype=linear_dtype)

    def forward(self, x: Tensor, rotary: Rotary, ctx: AttentionContext) -> Tensor:
        """x (T, dim) -> (T, dim)."""
        tokens = x.shape[0]
        q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x))) if self.q_proj is None else self.q_proj(x)
        q = q.view(tokens, self.heads, -1)
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        latent, k_rope = self.kv_a_proj(x).split((self.kv_rank, self.rope_dim), dim=-1)
        latent = self.kv_a_norm(latent)
        q_rope, k_rope = ops.rope(q_rope, *rotary), ops.rope(k_rope.unsqueeze(1), *rotary)
        q = ops.join(self.k_up(q_nope), q_rope, dtype=self.compute_dtype)  # (T, heads, kv_rank + rope_dim)
        k = ops.join(latent.unsqueeze(1), k_rope, dtype=k_rope.dtype)  # (T, 1, kv_rank + rope_dim)
        vectors = ctx.attend(self.layer_index, q, k, None, self.layout, self.scale)
        return self.o_proj(self.v_up(vectors).reshape(tokens, -1))  # type: ignore[no-any-return]
