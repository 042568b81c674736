"""Qwen 2 and 2.5 (and DeepSeek-R1-Distill-Qwen): Llama's layout with biases on q, k and v."""

from __future__ import annotations

from dataclasses import replace

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, hf_windows

# Qwen files are written for the halves convention of rope: no rows are reordered.
NAMES = tuple(replace(name, interleaved="") for name in llama.NAMES)


def from_hf(fields: Fields) -> ModelConfig:
    """Qwen 2's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    return llama.hf_config(fields, "qwen2", qkv_bias=True, windows=hf_windows(fields, layers, opt_in=True))


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Qwen 2's GGUF header."""
    return llama.gguf_config(fields, tensors, "qwen2")


FAMILY = Family("qwen2", from_hf, from_gguf, NAMES)
