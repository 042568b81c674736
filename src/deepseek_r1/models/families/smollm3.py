"""SmolLM 3: Llama's layout without rope on every fourth layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.rope_fields import hf_windows, layer_types, one_window


def from_hf(fields: Fields) -> ModelConfig:
    """SmolLM 3's config.json; `no_rope_layers` holds a 1 for each layer that HAS rope."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    bias = fields.boolean("attention_bias", False)
    flags = fields.values.get("no_rope_layers")
    if flags is None:
        interval = fields.integer("no_rope_layer_interval", 4)
        flags = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise fields.fail("no_rope_layers", "is not a list of 0 and 1, one per layer")
    return llama.hf_config(
        fields,
        "smollm3",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        tie_embeddings=fields.boolean("tie_word_embeddings", True),
        layer_ropes=tuple(0 if flag else None for flag in flags[:layers]),
        windows=hf_windows(fields, layers, opt_in=True),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """SmolLM 3's config.json."""
    window = one_window(config)
    return llama.to_hf(
        config,
        "SmolLM3ForCausalLM",
        mlp_bias=config.mlp_bias,
        no_rope_layers=[int(rope is not None) for rope in config.layer_ropes],
        layer_types=layer_types(config),
        use_sliding_window=window is not None,
        sliding_window=window,
        pad_token_id=None,
    )


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """SmolLM 3's GGUF header, which doesn't say that every fourth layer has no rope."""
    config = llama.gguf_config(fields, tensors, "smollm3", reads=())
    return replace(config, layer_ropes=tuple(0 if (layer + 1) % 4 else None for layer in range(config.layers)))


FAMILY = Family("smollm3", from_hf, to_hf, llama.HF, from_gguf, llama.GGUF)
