"""One layer of the decoder, and the multi-token prediction module that holds one: built from the model's options."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.kernels import ops
from deepseek_r1.layers import (
    Attention,
    AttentionContext,
    Experts,
    GatedDelta,
    GatedMLP,
    KVLayout,
    LatentAttention,
    Linear,
    MoE,
    RMSNorm,
    Router,
)
from deepseek_r1.layers.rope import Rotary
from deepseek_r1.models.config import ModelConfig, MoEConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32, "int4": torch.float32}
"""What each format computes with. Weights in 8 or 4 bits take and give float32; their biases are float32 too."""


def kv_layout(config: ModelConfig, precision: DeepSeekConfig, layer: int) -> KVLayout:
    """What this layer caches per token: keys and values, or a latent; for good, or in a ring."""
    kept = precision.dtype_of("kv_cache")
    dtype = torch.int8 if kept == "int8" else DTYPES[kept]
    if config.mla is not None:
        rank = config.mla.kv_rank
        layout = KVLayout(1, rank + config.mla.rope_dim, rank, dtype, shared=True)
    else:
        layout = KVLayout(config.kv_heads, config.head_dim, config.head_dim, dtype)
    if config.ring is not None and config.mixer(layer) == "ring":
        return replace(layout, window=config.ring.window, global_every=config.ring.global_every)
    return layout


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before them, after them, or both."""

    attention: Attention | LatentAttention | GatedDelta

    def __init__(self, index: int, config: ModelConfig, precision: DeepSeekConfig) -> None:
        super().__init__()

        def norm(*places: str) -> RMSNorm | None:
            if config.norms not in places:
                return None
            return RMSNorm(config.hidden_size, config.norm_eps, dtype=DTYPES[precision.dtype_of("norm")])

        self.attention_norm = norm("pre", "sandwich")
        self.attention_post_norm = norm("post", "sandwich")
        self.mlp_norm = norm("pre", "sandwich")
        self.mlp_post_norm = norm("post", "sandwich")
        self.residual_scale = config.residual_scale
        self.attention = _attention(index, config, precision)
        self.mlp = _mlp(index, config, precision)

    def forward(self, x: Tensor, rotary: Rotary | None, ctx: AttentionContext) -> Tensor:
        """x (T, hidden) -> (T, hidden), in x's dtype."""
        inner = x if self.attention_norm is None else self.attention_norm(x)
        x = self._add(x, self.attention(inner, rotary, ctx), self.attention_post_norm)
        inner = x if self.mlp_norm is None else self.mlp_norm(x)
        return self._add(x, self.mlp(inner), self.mlp_post_norm)

    def _add(self, x: Tensor, part: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is not None:
            part = norm(part)
        return ops.add(x, part, self.residual_scale)


class PredictionModule(nn.Module):
    """Multi-token prediction (DeepSeek-V3, section 2.2): guesses one token further than the model itself has got.

    It joins the model's hidden state of a position with the embedding of the token after it, and runs one more layer.
    """

    def __init__(self, index: int, config: ModelConfig, precision: DeepSeekConfig) -> None:
        super().__init__()
        norm = DTYPES[precision.dtype_of("norm")]
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=norm)
        self.hidden_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=norm)
        linear = DTYPES[precision.dtype_of("linear")]
        self.project = Linear(2 * config.hidden_size, config.hidden_size, dtype=linear)
        self.block = Block(index, config, precision)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=norm)

    def forward(self, hidden: Tensor, embedded: Tensor, rotary: Rotary | None, ctx: AttentionContext) -> Tensor:
        """Hidden states and embeddings of the next tokens, both (T, hidden) -> hidden states (T, hidden)."""
        joined = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1)
        x = self.project(joined).to(embedded.dtype)
        return self.norm(self.block(x, rotary, ctx))  # type: ignore[no-any-return]


def _attention(index: int, config: ModelConfig, precision: DeepSeekConfig) -> Attention | LatentAttention | GatedDelta:
    linear, norm = DTYPES[precision.dtype_of("linear")], DTYPES[precision.dtype_of("norm")]
    if config.delta is not None and config.mixer(index) == "delta":
        return GatedDelta(
            index,
            dim=config.hidden_size,
            key_heads=config.delta.key_heads,
            value_heads=config.delta.value_heads,
            key_dim=config.delta.key_dim,
            value_dim=config.delta.value_dim,
            conv_kernel=config.delta.conv_kernel,
            norm_eps=config.norm_eps,
            linear_dtype=linear,
            norm_dtype=norm,
            activation_dtype=DTYPES[precision.dtype_of("activation")],
        )
    layout = kv_layout(config, precision, index)
    compute = DTYPES[precision.dtype_of("attention")]
    dtypes = {"linear_dtype": linear, "norm_dtype": norm, "compute_dtype": compute}
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    mla = config.mla
    if mla is not None:
        return LatentAttention(
            index,
            dim=config.hidden_size,
            heads=config.heads,
            q_rank=mla.q_rank,
            kv_rank=mla.kv_rank,
            nope_dim=mla.nope_dim,
            rope_dim=mla.rope_dim,
            value_dim=mla.value_dim,
            layout=layout,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            norm_eps=mla.norm_eps,
            scale=scale,
            **dtypes,
        )
    return Attention(
        index,
        dim=config.hidden_size,
        heads=config.heads,
        head_dim=config.head_dim,
        layout=layout,
        qkv_bias=config.qkv_bias,
        output_bias=config.output_bias,
        qk_norm=config.qk_norm,
        norm_eps=config.norm_eps,
        scale=scale,
        window=config.windows[index] if index < config.layers else None,
        **dtypes,
    )


def _mlp(index: int, config: ModelConfig, precision: DeepSeekConfig) -> nn.Module:
    if config.moe is not None and config.has_experts(index):
        return _experts(config, config.moe, precision)
    return _dense(config, config.intermediate_size, precision)


def _dense(config: ModelConfig, width: int, precision: DeepSeekConfig) -> GatedMLP:
    return GatedMLP(
        config.hidden_size,
        width,
        bias=config.mlp_bias,
        activation=config.activation,
        dtype=DTYPES[precision.dtype_of("linear")],
        activation_dtype=DTYPES[precision.dtype_of("activation")],
    )


def _experts(config: ModelConfig, moe: MoEConfig, precision: DeepSeekConfig) -> MoE:
    router = Router(
        config.hidden_size,
        moe.experts,
        moe.active,
        score=moe.score,
        normalise=moe.normalise,
        scale=moe.scale,
        groups=moe.groups,
        active_groups=moe.active_groups,
        bias=moe.bias,
    )
    experts = Experts(
        config.hidden_size,
        moe.experts,
        moe.hidden_size,
        activation=config.activation,
        dtype=DTYPES[precision.dtype_of("linear")],
        activation_dtype=DTYPES[precision.dtype_of("activation")],
    )
    shared = _dense(config, moe.shared_hidden_size, precision) if moe.shared_hidden_size else None
    return MoE(router, experts, shared)
