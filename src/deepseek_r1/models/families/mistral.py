"""Mistral: Llama's layout with a sliding window on every layer where the file names one."""

from __future__ import annotations

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.rope_fields import hf_windows, one_window


def from_hf(fields: Fields) -> ModelConfig:
    """Mistral's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    return llama.hf_config(fields, "mistral", windows=hf_windows(fields, layers, opt_in=False))


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Mistral models that name their own architecture in GGUF (most say "llama")."""
    return llama.gguf_config(fields, tensors, "mistral")


FAMILY = Family(
    "mistral",
    from_hf,
    lambda config: llama.to_hf(config, "MistralForCausalLM", sliding_window=one_window(config)),
    llama.HF,
    from_gguf,
    llama.GGUF,
)
