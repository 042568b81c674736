"""What GGUF headers of all families say alike: heads, rope, and options that must be neutral where a family has none.

The names and their meaning are llama.cpp's, whose converter writes the files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, RopeConfig
from deepseek_r1.models.families.rope_fields import yarn_mscale

# What changes the mathematics, with the values that leave it alone. A family that has the option reads it instead.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (1,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.dimension_sections": ([0, 0, 0, 0],),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "router_logit_softcapping": (0.0,),
}


def refuse_options(fields: Fields, reads: tuple[str, ...]) -> None:
    """Raise `UnsupportedError` for any option that changes the mathematics and is not in `reads`."""
    for key, neutral in NEUTRAL.items():
        if key not in reads:
            fields.expect(key, neutral)


def gguf_head_dim(fields: Fields) -> int:
    """The width of one head, given or following from the others; keys and values have the same."""
    heads = fields.integer("attention.head_count", most=1 << 12)
    hidden = fields.integer("embedding_length", most=1 << 20)
    if "attention.key_length" not in fields:
        fields.divides("embedding_length", hidden, heads)
    head_dim = fields.integer("attention.key_length", hidden // heads, most=1 << 12)
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        fields.expect(key, (head_dim,))
    return head_dim


def gguf_rope(fields: Fields, dim: int) -> RopeConfig:
    """The rope over `dim` columns. Without a type a factor divides positions, as in the first files that had one."""
    fields.divides("rope.dimension_count", dim, 2)
    fields.expect("rope.dimension_count_swa", (dim,))
    fields.expect("rope.scaling.type", ("none", "linear", "yarn"))
    rope = RopeConfig(fields.number("rope.freq_base", 10000.0), dim)
    scaling = fields.values.get(f"{fields.prefix}rope.scaling.type", "linear")
    if scaling == "none" or fields.values.get(f"{fields.prefix}rope.scaling.factor") == 0.0:
        return rope
    if scaling == "linear":
        factor = fields.number("rope.scaling.factor", 1.0)
        return rope if factor == 1.0 else replace(rope, scaling="linear", factor=factor)
    factor = fields.number("rope.scaling.factor")
    return replace(
        rope,
        scaling="yarn",
        factor=factor,
        original_max_position=fields.integer(
            "rope.scaling.original_context_length", fields.integer("context_length", 2048)
        ),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=yarn_mscale(factor, 1.0),
    )
