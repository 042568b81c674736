"""Qwen 3 (dense): no biases, and a norm on each head of q and k before rope."""

from __future__ import annotations

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.qwen2 import windows_to_hf
from deepseek_r1.models.families.rope_fields import hf_windows

HF = (*llama.HF, *llama.HF_QK_NORMS)
GGUF = (*llama.GGUF_HALVES, *llama.GGUF_QK_NORMS)


def from_hf(fields: Fields) -> ModelConfig:
    """Qwen 3's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    bias = fields.boolean("attention_bias", False)
    windows = hf_windows(fields, layers, opt_in=True)
    return llama.hf_config(fields, "qwen3", qk_norm="head", qkv_bias=bias, output_bias=bias, windows=windows)


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Qwen 3's GGUF header."""
    return llama.gguf_config(fields, tensors, "qwen3", qk_norm="head")


FAMILY = Family(
    "qwen3",
    from_hf,
    lambda config: llama.to_hf(config, "Qwen3ForCausalLM", **windows_to_hf(config)),
    HF,
    from_gguf,
    GGUF,
)
