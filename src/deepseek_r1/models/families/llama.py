"""Llama 2 and 3, SmolLM2 and everything that follows their layout; the other families here vary it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig
from deepseek_r1.models.families.base import Family, WeightName, hf_rope

NAMES = (
    WeightName("embedding.weight", "model.embed_tokens.weight", "token_embd.weight"),
    *(
        WeightName(f"layers.{{i}}.{ours}.{kind}", f"model.layers.{{i}}.{hf}.{kind}", f"blk.{{i}}.{gguf}.{kind}", heads)
        for ours, hf, gguf, heads in (
            ("attention.qkv.q_proj", "self_attn.q_proj", "attn_q", "heads"),
            ("attention.qkv.k_proj", "self_attn.k_proj", "attn_k", "kv_heads"),
            ("attention.qkv.v_proj", "self_attn.v_proj", "attn_v", ""),
            ("attention.o_proj", "self_attn.o_proj", "attn_output", ""),
            ("mlp.gate_up.gate_proj", "mlp.gate_proj", "ffn_gate", ""),
            ("mlp.gate_up.up_proj", "mlp.up_proj", "ffn_up", ""),
            ("mlp.down_proj", "mlp.down_proj", "ffn_down", ""),
        )
        for kind in ("weight", "bias")
    ),
    WeightName(
        "layers.{i}.attention_norm.weight", "model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"
    ),
    WeightName(
        "layers.{i}.mlp_norm.weight", "model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"
    ),
    WeightName("norm.weight", "model.norm.weight", "output_norm.weight"),
    WeightName("lm_head.weight", "lm_head.weight", "output.weight"),
)


def hf_config(fields: Fields, family: str = "llama", **options: Any) -> ModelConfig:
    """The fields that every Llama-like config.json has; `options` fill in what the family adds."""
    fields.expect("hidden_act", ("silu",))
    heads = fields.integer("num_attention_heads", most=1 << 12)
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    hidden = fields.integer("hidden_size", most=1 << 20)
    kv_heads = fields.integer("num_key_value_heads", heads, most=1 << 12)
    fields.divides("num_attention_heads", heads, kv_heads)
    if "head_dim" not in fields:
        fields.divides("hidden_size", hidden, heads)
    options.setdefault("windows", (None,) * layers)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", most=1 << 20),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", hidden // heads, most=1 << 12),
        max_position=fields.integer("max_position_embeddings", 2048),
        norm_eps=fields.number("rms_norm_eps", 1e-6, most=1),
        rope=hf_rope(fields),
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        **options,
    )


def llama_hf(fields: Fields) -> ModelConfig:
    """Llama's own config.json: optional biases on attention and MLP."""
    bias = fields.boolean("attention_bias", False)
    mlp_bias = fields.boolean("mlp_bias", False)
    return hf_config(fields, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def gguf_config(fields: Fields, tensors: set[str], family: str = "llama", **options: Any) -> ModelConfig:
    """A Llama-like GGUF header; biases and tied embeddings show in the tensor names."""
    heads = fields.integer("attention.head_count", most=1 << 12)
    layers = fields.integer("block_count", most=1 << 12)
    hidden = fields.integer("embedding_length", most=1 << 20)
    kv_heads = fields.integer("attention.head_count_kv", heads, most=1 << 12)
    fields.divides("attention.head_count", heads, kv_heads)
    if "attention.key_length" not in fields:
        fields.divides("embedding_length", hidden, heads)
    head_dim = fields.integer("attention.key_length", hidden // heads, most=1 << 12)
    fields.expect("attention.value_length", (head_dim,))
    fields.expect("rope.dimension_count", (head_dim,))
    fields.expect("rope.scaling.type", ("none", "linear"))
    fields.expect("expert_count", (0,))
    window = fields.integer("attention.sliding_window", 0, least=0) or None
    options.setdefault("windows", (window,) * layers)
    rope = RopeConfig(fields.number("rope.freq_base", 10000.0))
    if fields.values.get(fields.prefix + "rope.scaling.type") == "linear":
        rope = replace(rope, scaling="linear", factor=fields.number("rope.scaling.factor"))
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length", most=1 << 20),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=fields.integer("context_length", 2048),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", most=1),
        rope=rope,
        tie_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        **options,
    )


FAMILY = Family("llama", llama_hf, gguf_config, NAMES)
