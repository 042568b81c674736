"""The one text decoder: every family, and training, rollouts, compression and serving, run this forward pass."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.kernels import ops
from deepseek_r1.layers import AttentionContext, Linear, MoE, RMSNorm, RotaryEmbedding
from deepseek_r1.layers.lora import AdapterRows
from deepseek_r1.layers.rope import Rotary
from deepseek_r1.models.block import DTYPES, Block, PredictionModule
from deepseek_r1.models.config import ModelConfig, RopeConfig


class Embedding(nn.Module):
    """The table of token vectors."""

    def __init__(self, vocab_size: int, dim: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (T,) -> (T, dim)."""
        return ops.embedding(ids, self.weight)


class Decoder(nn.Module):
    """A causal language model over flat batches of tokens; where keys and values live is the context's affair.

    `layouts` are what its layers cache, the prediction modules' behind the others. `adapters` says which rows of the
    next forward pass have an adapter, where surgery has added some. With `recompute` a layer's activations are computed
    again in the backward pass instead of being kept.
    """

    def __init__(self, config: ModelConfig, precision: DeepSeekConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = precision
        self.adapters = AdapterRows()
        self.recompute = False
        count = config.layers + config.mtp_layers
        self.embedding = Embedding(config.vocab_size, config.hidden_size, dtype=DTYPES[precision.dtype_of("embedding")])
        self.rotaries = nn.ModuleList(_rotary(rope, precision) for rope in config.ropes)
        self.layers = nn.ModuleList(Block(i, config, precision) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=DTYPES[precision.dtype_of("norm")])
        self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=DTYPES[precision.dtype_of("lm_head")])
        self.mtp = nn.ModuleList(PredictionModule(i, config, precision) for i in range(config.layers, count))
        blocks = [*self.layers, *(module.block for module in self.mtp)]
        self.layouts = [block.attention.layout for block in blocks]
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output layer share the embedding table where the model ties them and the formats agree."""
        if self.config.tie_embeddings and self.lm_head.weight.dtype == self.embedding.weight.dtype:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, *, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """input_ids (T,), positions (T,) -> hidden states (T, hidden) after the last norm.

        `inputs_embeds` (T, hidden) stands in for the embedded (and scaled) ids where given.
        """
        x = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        rotaries: list[Rotary] = [rotary(positions) for rotary in self.rotaries]
        for layer, rope in zip(self.layers, self.config.layer_ropes, strict=True):
            rotary = None if rope is None else rotaries[rope]
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotary, ctx, use_reentrant=False)
            else:
                x = layer(x, rotary, ctx)
        return self.norm(x)  # type: ignore[no-any-return]

    def predict(
        self, module: int, hidden: Tensor, next_ids: Tensor, positions: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """One prediction module further: hidden (T, hidden) of `positions`, and the ids that follow them, both (T,).

        Returns hidden states (T, hidden); their `logits` are guesses of the token after next.
        """
        rotary = self.rotaries[0](positions)
        return self.mtp[module](hidden, self._embed(next_ids), rotary, ctx)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (T, hidden) -> float32 logits (T, vocabulary)."""
        return ops.scaled(self.lm_head(hidden), self.config.logits_scale, torch.float32)

    def expert_tokens(self) -> dict[int, Tensor]:
        """How many tokens each expert has had, (experts,) int64 by layer; layers without experts are left out."""
        return {i: layer.mlp.expert_tokens for i, layer in enumerate(self.layers) if isinstance(layer.mlp, MoE)}

    def _embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        return ops.scaled(x, self.config.embedding_scale, x.dtype)


def _rotary(rope: RopeConfig, precision: DeepSeekConfig) -> RotaryEmbedding:
    options = dataclasses.asdict(rope)
    del options["mscale_all_dim"]  # part of the softmax scale
    return RotaryEmbedding(**options, dtype=DTYPES[precision.dtype_of("rope")])
