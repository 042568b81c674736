"""Qwen 2 and 2.5 (and DeepSeek-R1-Distill-Qwen): Llama's layout with biases on q, k and v."""

from __future__ import annotations

from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.rope_fields import hf_windows, layer_types, one_window


def from_hf(fields: Fields) -> ModelConfig:
    """Qwen 2's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    return llama.hf_config(fields, "qwen2", qkv_bias=True, windows=hf_windows(fields, layers, opt_in=True))


def windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The window fields of Qwen's config.json."""
    window = one_window(config)
    if window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": layer_types(config)}


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Qwen 2's GGUF header."""
    return llama.gguf_config(fields, tensors, "qwen2")


FAMILY = Family(
    "qwen2",
    from_hf,
    lambda config: llama.to_hf(config, "Qwen2ForCausalLM", **windows_to_hf(config)),
    llama.HF,
    from_gguf,
    llama.GGUF_HALVES,
)
