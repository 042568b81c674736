"""Phi 3, 3.5 and 4: Llama's layout with q, k, v and gate, up stored as one; only a part of each head may rotate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, changed, weight_and_bias
from deepseek_r1.models.families.gguf_fields import gguf_head_dim
from deepseek_r1.models.families.rope_fields import hf_rope, hf_windows, one_window, rope_parameters

QKV = tuple(f"layers.{{i}}.attention.qkv.{name}" for name in ("q_proj", "k_proj", "v_proj"))
GATE_UP = tuple(f"layers.{{i}}.mlp.gate_up.{name}" for name in ("gate_proj", "up_proj"))

HF = changed(
    llama.HF,
    *weight_and_bias("model.layers.{i}.self_attn.qkv_proj", *QKV),
    *weight_and_bias("model.layers.{i}.mlp.gate_up_proj", *GATE_UP),
)

GGUF = changed(
    llama.GGUF_HALVES,
    *weight_and_bias("blk.{i}.attn_qkv", *QKV),
    *weight_and_bias("blk.{i}.ffn_up", *GATE_UP),
)
GGUF_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")


def from_hf(fields: Fields) -> ModelConfig:
    """Phi 3's config.json.

    LongRoPE changes every frequency once a sequence grows past the length of pretraining, which would change the keys
    of tokens that are cached already. The context ends at that length here, where its short factors are exact.
    """
    section = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    rope = hf_rope(fields, llama.hf_head_dim(fields), scalings=("default", "longrope", "su"))
    longest = fields.integer("max_position_embeddings", 4096)
    if section.values.get("rope_type" if "rope_type" in section else "type") in ("longrope", "su"):
        where = section if "original_max_position_embeddings" in section else fields
        original = where.integer("original_max_position_embeddings", longest, least=2)
        factor = section.number("factor", longest / original)
        default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        rope = replace(
            rope,
            frequency_divisors=section.numbers("short_factor", rope.dim // 2),
            attention_factor=section.number("attention_factor", default),
            original_max_position=original,
        )
        longest = min(longest, original)
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    windows = hf_windows(fields, layers, opt_in=False)
    return llama.hf_config(fields, "phi3", rope=rope, max_position=longest, windows=windows)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Phi 3's config.json; LongRoPE's short factors stand for both lengths, the context ending where they do."""
    rope = config.ropes[0]
    parameters = rope_parameters(rope, config.head_dim)
    extra: dict[str, Any] = {"sliding_window": one_window(config), "pad_token_id": None}
    if rope.frequency_divisors is not None:
        factors = list(rope.frequency_divisors)
        parameters |= {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
        parameters |= {"attention_factor": rope.attention_factor}
        parameters |= {"original_max_position_embeddings": rope.original_max_position}
        extra["original_max_position_embeddings"] = rope.original_max_position
    return llama.to_hf(config, "Phi3ForCausalLM", rope_parameters=parameters, **extra)


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Phi 3's GGUF header. The context ends where the short factors do, as in `from_hf`; they come as a tensor."""
    fields.expect("rope.scaling.type", ("none", "longrope"))
    fields.expect("rope.scaling.factor", (0.0, 1.0))
    dim = fields.integer("rope.dimension_count", most=gguf_head_dim(fields))
    fields.expect("rope.dimension_count_swa", (dim,))
    fields.divides("rope.dimension_count", dim, 2)
    rope = RopeConfig(fields.number("rope.freq_base", 10000.0), dim)
    longest = fields.integer("context_length")
    reads: tuple[str, ...] = ("attention.sliding_window",)
    if GGUF_FACTORS[0] in tensors:
        original = fields.integer("rope.scaling.original_context_length")
        factor = fields.number("rope.scaling.attn_factor")
        rope = replace(rope, attention_factor=factor, original_max_position=original)
        longest = min(longest, original)
        reads = (*reads, "rope.scaling.attn_factor")
    elif fields.values.get(f"{fields.prefix}rope.scaling.type") == "longrope":
        raise fields.fail("rope.scaling.type", f"is 'longrope', but there is no tensor {GGUF_FACTORS[0]!r}")
    fields.integer("attention.sliding_window", least=0)  # files from before it was written had windows as well
    return llama.gguf_config(fields, tensors, "phi3", reads=reads, rope=rope, max_position=longest)


FAMILY = Family("phi3", from_hf, to_hf, HF, from_gguf, GGUF, gguf_divisors=GGUF_FACTORS)
