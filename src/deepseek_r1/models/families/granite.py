"""Granite 3: Llama's layout with a multiplier each on embeddings, scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.gguf_fields import gguf_head_dim


def from_hf(fields: Fields) -> ModelConfig:
    """Granite's config.json."""
    bias = fields.boolean("attention_bias", False)
    return llama.hf_config(
        fields,
        "granite",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Granite's config.json."""
    return llama.to_hf(
        config,
        "GraniteForCausalLM",
        mlp_bias=config.mlp_bias,
        embedding_multiplier=config.embedding_scale,
        attention_multiplier=config.attention_scale,
        residual_multiplier=config.residual_scale,
        logits_scaling=1 / config.logits_scale,
    )


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Granite's GGUF header: for a multiplier of 0, as for none, stands what other families have."""
    fields.expect("rope.scaling.finetuned", (True,))  # its hybrids without rope say so here

    def scale(key: str, default: float = 1.0) -> float:
        return default if fields.values.get(f"{fields.prefix}{key}") in (0, None) else fields.number(key)

    return llama.gguf_config(
        fields,
        tensors,
        "granite",
        reads=("attention.scale", "embedding_scale", "residual_scale", "logit_scale"),
        attention_scale=scale("attention.scale", gguf_head_dim(fields) ** -0.5),
        embedding_scale=scale("embedding_scale"),
        residual_scale=scale("residual_scale"),
        logits_scale=1 / scale("logit_scale"),
    )


FAMILY = Family("granite", from_hf, to_hf, llama.HF, from_gguf, llama.GGUF)
