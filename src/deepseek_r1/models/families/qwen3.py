"""Qwen 3 (dense): no biases, and a norm on each head of q and k before rope."""

from __future__ import annotations

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama, qwen2
from deepseek_r1.models.families.base import Family, WeightName, hf_windows

NAMES = (
    *qwen2.NAMES,
    *(
        WeightName(
            f"layers.{{i}}.attention.{x}_norm.weight",
            f"model.layers.{{i}}.self_attn.{x}_norm.weight",
            f"blk.{{i}}.attn_{x}_norm.weight",
        )
        for x in "qk"
    ),
)


def from_hf(fields: Fields) -> ModelConfig:
    """Qwen 3's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    bias = fields.boolean("attention_bias", False)
    windows = hf_windows(fields, layers, opt_in=True)
    return llama.hf_config(fields, "qwen3", qk_norm=True, qkv_bias=bias, output_bias=bias, windows=windows)


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Qwen 3's GGUF header."""
    return llama.gguf_config(fields, tensors, "qwen3", qk_norm=True)


FAMILY = Family("qwen3", from_hf, from_gguf, NAMES)
