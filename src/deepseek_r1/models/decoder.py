"""The one text decoder: every family, and training, rollouts, compression and serving, run this forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.kernels import ops
from deepseek_r1.layers import Attention, AttentionContext, GatedMLP, KVLayout, Linear, RMSNorm, RotaryEmbedding
from deepseek_r1.models.config import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Embedding(nn.Module):
    """The table of token vectors."""

    def __init__(self, vocab_size: int, dim: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (T,) -> (T, dim)."""
        return ops.embedding(ids, self.weight)


class Block(nn.Module):
    """One pre-norm layer: attention and a gated MLP, each added to the residual stream."""

    def __init__(self, index: int, config: ModelConfig, precision: DeepSeekConfig, layout: KVLayout) -> None:
        super().__init__()
        linear = DTYPES[precision.dtype_of("linear")]
        norm = DTYPES[precision.dtype_of("norm")]
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=norm)
        self.attention = Attention(
            index,
            dim=config.hidden_size,
            heads=config.heads,
            head_dim=config.head_dim,
            layout=layout,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm_eps=config.norm_eps if config.qk_norm else None,
            window=config.windows[index],
            linear_dtype=linear,
            norm_dtype=norm,
            compute_dtype=DTYPES[precision.dtype_of("attention")],
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=norm)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            bias=config.mlp_bias,
            dtype=linear,
            activation_dtype=DTYPES[precision.dtype_of("activation")],
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], ctx: AttentionContext) -> Tensor:
        """x (T, hidden) -> (T, hidden), in x's dtype."""
        x = x + self.attention(self.attention_norm(x), rotary, ctx).to(x.dtype)
        return x + self.mlp(self.mlp_norm(x)).to(x.dtype)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A causal language model over flat batches of tokens; where keys and values live is the context's affair."""

    def __init__(self, config: ModelConfig, precision: DeepSeekConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = precision
        self.layouts = [
            KVLayout(config.kv_heads, config.head_dim, config.head_dim, DTYPES[precision.dtype_of("kv_cache")])
            for _ in range(config.layers)
        ]
        self.embedding = Embedding(config.vocab_size, config.hidden_size, dtype=DTYPES[precision.dtype_of("embedding")])
        self.rotary = self.rotary_for(config, precision)
        self.layers = nn.ModuleList(Block(i, config, precision, self.layouts[i]) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=DTYPES[precision.dtype_of("norm")])
        self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=DTYPES[precision.dtype_of("lm_head")])
        self.tie_weights()

    @staticmethod
    def rotary_for(config: ModelConfig, precision: DeepSeekConfig) -> RotaryEmbedding:
        """The rotary embedding of a model of this shape."""
        rope = config.rope
        return RotaryEmbedding(
            config.head_dim,
            rope.theta,
            scaling=rope.scaling,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_max_position=rope.original_max_position,
            frequency_divisors=rope.frequency_divisors,
            dtype=DTYPES[precision.dtype_of("rope")],
        )

    def tie_weights(self) -> None:
        """Let the output layer share the embedding table where the model ties them and the formats agree."""
        if self.config.tie_embeddings and self.lm_head.weight.dtype == self.embedding.weight.dtype:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, *, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """input_ids (T,), positions (T,) -> hidden states (T, hidden) after the last norm.

        `inputs_embeds` (T, hidden) stands in for the embedded ids where given.
        """
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        rotary = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, rotary, ctx)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (T, hidden) -> float32 logits (T, vocabulary)."""
        return self.lm_head(hidden).float()  # type: ignore[no-any-return]
