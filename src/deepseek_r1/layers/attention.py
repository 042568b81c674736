"""Grouped-query attention: projections, optional q/k norms and rope around `AttentionContext.attend`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import AttentionContext, KVLayout
from deepseek_r1.layers.linear import Linear, LinearGroup
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.rope import Rotary


class Attention(nn.Module):
    """Multi-head attention with `kv_heads` key heads shared by groups of query heads (Ainslie et al. 2023).

    `window` limits a query to the last `window` positions. `qk_norm` adds a norm to q and k: on each head ("head",
    Qwen 3) or over all heads at once ("full", OLMo 2). `scale` multiplies the scores. `compute_dtype` is the dtype in
    which scores and context vectors are computed.
    """

    def __init__(
        self,
        layer_index: int,
        *,
        dim: int,
        heads: int,
        head_dim: int,
        layout: KVLayout,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm: str | None,
        norm_eps: float,
        scale: float,
        window: int | None,
        linear_dtype: torch.dtype,
        norm_dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.heads = heads
        self.head_dim = head_dim
        self.layout = layout
        self.window = window
        self.scale = scale
        self.compute_dtype = compute_dtype
        widths = {"q_proj": heads, "k_proj": layout.kv_heads, "v_proj": layout.kv_heads}
        self.qkv = LinearGroup(
            {name: Linear(dim, n * head_dim, bias=qkv_bias, dtype=linear_dtype) for name, n in widths.items()}
        )
        self.o_proj = Linear(heads * head_dim, dim, bias=output_bias, dtype=linear_dtype)
        self.norms_heads = qk_norm == "head"
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norm is not None:
            each = self.norms_heads
            self.q_norm = RMSNorm(head_dim if each else heads * head_dim, norm_eps, dtype=norm_dtype)
            self.k_norm = RMSNorm(head_dim if each else layout.kv_heads * head_dim, norm_eps, dtype=norm_dtype)

    def forward(self, x: Tensor, rotary: Rotary | None, ctx: AttentionContext) -> Tensor:
        """x (T, dim) -> (T, dim). Without `rotary` positions don't show (NoPE)."""
        tokens = x.shape[0]
        q, k, v = self.qkv(x)
        if self.q_norm is not None and self.k_norm is not None and not self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(tokens, self.heads, self.head_dim)
        k = k.view(tokens, self.layout.kv_heads, self.head_dim)
        v = v.view(tokens, self.layout.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None and self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = ops.rope(q, *rotary), ops.rope(k, *rotary)
        q = q.to(self.compute_dtype)
        vectors = ctx.attend(self.layer_index, q, k, v, self.layout, self.scale, self.window)
        return self.o_proj(vectors.reshape(tokens, -1))  # type: ignore[no-any-return]
