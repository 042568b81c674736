"""Gemma 3 (text): local layers with their own rope, norms before and after as 1 + w, tanh GELU, scaled embedding."""

from __future__ import annotations

from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, Weight
from deepseek_r1.models.families.forms import PLUS_ONE
from deepseek_r1.models.families.gguf_fields import gguf_head_dim, gguf_rope
from deepseek_r1.models.families.rope_fields import hf_rope, layer_types, one_window, rope_parameters

_NORMS = {
    "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    "layers.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
    "layers.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
    "norm": "model.norm",
}

HF = (
    *(weight for weight in llama.HF if "norm" not in weight.stored),
    *(Weight(f"{theirs}.weight", (f"{ours}.weight",), PLUS_ONE) for ours, theirs in _NORMS.items()),
)
# GGUF files hold 1 + w, what multiplies.
GGUF = (*llama.GGUF_HALVES, *llama.GGUF_QK_NORMS, *llama.GGUF_POST_NORMS)

GLOBAL, LOCAL = "full_attention", "sliding_attention"

LAYERS_27B = 62  # the one size whose query_pre_attn_scalar is not its head_dim; GGUF tells it by its layers alone


def from_hf(fields: Fields) -> ModelConfig:
    """Gemma 3's config.json (of the text model). The first rope is the global layers', the second the local ones'."""
    fields.expect("hidden_activation", ("gelu_pytorch_tanh",))
    fields.expect("attn_logit_softcapping", (0, 0.0))
    fields.expect("final_logit_softcapping", (0, 0.0))
    fields.expect("use_bidirectional_attention", (False,))
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    head_dim = fields.integer("head_dim", 256, most=1 << 12)
    if "layer_types" in fields:
        types = fields.choices("layer_types", (LOCAL, GLOBAL), layers)
    else:
        pattern = fields.integer("sliding_window_pattern", 6)
        types = [LOCAL if (layer + 1) % pattern else GLOBAL for layer in range(layers)]
    window = fields.integer("sliding_window", 4096)
    bias = fields.boolean("attention_bias", False)
    return llama.hf_config(
        fields,
        "gemma3_text",
        head_dim=head_dim,
        qkv_bias=bias,
        output_bias=bias,
        rope=_global_rope(fields, head_dim),
        ropes=(_global_rope(fields, head_dim), _local_rope(fields, head_dim)),
        layer_ropes=tuple(int(kind == LOCAL) for kind in types),
        windows=tuple(window if kind == LOCAL else None for kind in types),
        tie_embeddings=fields.boolean("tie_word_embeddings", True),
        qk_norm="head",
        norms="sandwich",
        activation="gelu_tanh",
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        embedding_scale=fields.integer("hidden_size", most=1 << 20) ** 0.5,
    )


def _global_rope(fields: Fields, head_dim: int) -> Any:
    nested = fields.section("rope_parameters")
    section = nested.section(GLOBAL) if GLOBAL in nested else None
    return hf_rope(fields, head_dim, theta=1e6, scalings=("default", "linear"), section=section)


def _local_rope(fields: Fields, head_dim: int) -> Any:
    nested = fields.section("rope_parameters")
    if LOCAL in nested:
        return hf_rope(fields, head_dim, scalings=("default", "linear"), section=nested.section(LOCAL))
    theta = fields.number("rope_local_base_freq", 10000.0)
    return hf_rope(fields, head_dim, section=Fields(fields.path, {"rope_theta": theta}))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Gemma 3's config.json (of the text model)."""
    everywhere, local = (rope_parameters(rope, config.head_dim) for rope in config.ropes)
    assert config.attention_scale is not None
    fields = llama.to_hf(
        config,
        "Gemma3ForCausalLM",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=round(config.attention_scale**-2),
        rope_parameters={GLOBAL: everywhere, LOCAL: local},
        layer_types=layer_types(config),
        sliding_window=one_window(config) or 4096,
    )
    del fields["hidden_act"]
    return fields


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Gemma 3's GGUF header. Local layers' rope is never scaled, and what multiplies scores follows from the shape."""
    head_dim = gguf_head_dim(fields)
    fields.expect("rope.dimension_count", (head_dim,))
    fields.expect("rope.scaling.type", ("none", "linear"))
    fields.number("rope.freq_base")
    ropes = (gguf_rope(fields, head_dim), RopeConfig(fields.number("rope.freq_base_swa", 10000.0), head_dim))
    layers = fields.integer("block_count", most=1 << 12)
    local = _gguf_local(fields, layers)
    window = fields.integer("attention.sliding_window")
    hidden = fields.integer("embedding_length", most=1 << 20)
    scalar = head_dim
    if layers == LAYERS_27B:
        heads = fields.integer("attention.head_count", most=1 << 12)
        fields.divides("embedding_length", hidden, heads)
        scalar = hidden // heads
    return llama.gguf_config(
        fields,
        tensors,
        "gemma3_text",
        reads=("attention.sliding_window", "attention.sliding_window_pattern"),
        rope=ropes[0],
        ropes=ropes,
        layer_ropes=tuple(map(int, local)),
        windows=tuple(window if one else None for one in local),
        qk_norm="head",
        norms="sandwich",
        activation="gelu_tanh",
        attention_scale=scalar**-0.5,
        embedding_scale=hidden**0.5,
    )


def _gguf_local(fields: Fields, layers: int) -> list[bool]:
    """Which layers are local: every sixth is not, unless the header names another period or lists them."""
    key = "attention.sliding_window_pattern"
    listed = fields.values.get(f"{fields.prefix}{key}")
    if not isinstance(listed, list):
        period = fields.integer(key, 6)
        return [(layer + 1) % period != 0 for layer in range(layers)]
    if len(listed) != layers or not all(isinstance(one, bool) for one in listed):
        raise fields.fail(key, f"is not a list of {layers} truth values")
    return listed


FAMILY = Family("gemma3_text", from_hf, to_hf, HF, from_gguf, GGUF, gguf_divisors=())
