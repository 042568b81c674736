"""Rope and windows of config.json: the old form (rope_theta, rope_scaling) and the new one (rope_parameters)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig

SCALINGS = ("default", "linear", "llama3", "yarn")


def hf_rope(
    fields: Fields,
    head_dim: int,
    *,
    partial: float = 1.0,
    theta: float = 10000.0,
    scalings: tuple[str, ...] = SCALINGS,
    section: Fields | None = None,
) -> RopeConfig:
    """One rope of config.json. `partial` is the family's default share of rotated columns.

    `section` replaces the place where the scaling is read (models with a rope per layer type).
    """
    if section is None:
        section = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    theta = section.number("rope_theta") if "rope_theta" in section else fields.number("rope_theta", theta)
    where = section if "partial_rotary_factor" in section else fields
    dim = int(head_dim * where.number("partial_rotary_factor", partial, most=1))
    if dim < 2 or dim % 2:
        raise where.fail("partial_rotary_factor", f"leaves {dim} columns of {head_dim} to rotate, not an even number")
    kind = "rope_type" if "rope_type" in section else "type"
    section.expect(kind, scalings)
    scaling = section.values.get(kind, "default")
    if scaling == "linear":
        return RopeConfig(theta, dim, "linear", section.number("factor"))
    if scaling == "llama3":
        return RopeConfig(
            theta,
            dim,
            "llama3",
            section.number("factor"),
            section.number("low_freq_factor"),
            section.number("high_freq_factor"),
            section.integer("original_max_position_embeddings"),
        )
    return _yarn(fields, section, theta, dim) if scaling == "yarn" else RopeConfig(theta, dim)


def _yarn(fields: Fields, section: Fields, theta: float, dim: int) -> RopeConfig:
    """YaRN (Peng et al. 2023), with DeepSeek's two factors for the softmax temperature."""
    longest = fields.integer("max_position_embeddings", 2048)
    original = section.integer("original_max_position_embeddings", longest)
    factor = section.number("factor", longest / original)
    mscale = _zero_or_number(section, "mscale")
    all_dim = _zero_or_number(section, "mscale_all_dim")
    if "attention_factor" in section:
        attention = section.number("attention_factor")
    elif mscale and all_dim:
        attention = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    else:
        # DeepSeek-R1-0528-Qwen3-8B cancels the default by this factor. vLLM knows it, transformers passes it over.
        attention = yarn_mscale(factor, 1.0) * section.number("attn_factor", 1.0)
    return RopeConfig(
        theta,
        dim,
        "yarn",
        factor,
        original_max_position=original,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.boolean("truncate", True),
        attention_factor=attention,
        mscale_all_dim=all_dim,
    )


def _zero_or_number(section: Fields, key: str) -> float:
    return 0.0 if section.values.get(key) in (0, 0.0, None) else section.number(key)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature for this scaling factor."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_parameters(rope: RopeConfig, head_dim: int) -> dict[str, Any]:
    """The `rope_parameters` of config.json that `hf_rope` reads back."""
    out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.dim != head_dim:
        out["partial_rotary_factor"] = rope.dim / head_dim
    if rope.scaling == "none":
        return out
    out |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        out |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        out |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        out |= {"attention_factor": rope.attention_factor, "mscale_all_dim": rope.mscale_all_dim}
    if rope.scaling in ("llama3", "yarn"):
        out["original_max_position_embeddings"] = rope.original_max_position
    return out


def hf_windows(fields: Fields, layers: int, *, opt_in: bool) -> tuple[int | None, ...]:
    """Each layer's window from config.json. With `opt_in` (Qwen), `use_sliding_window` has to be true as well."""
    types = fields.values.get("layer_types")
    if "sliding_window" not in fields or (opt_in and not fields.boolean("use_sliding_window", False)):
        return (None,) * layers
    window = fields.integer("sliding_window")
    if opt_in and isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = fields.integer("max_window_layers", 0, least=0) if opt_in else 0
    return tuple(window if layer >= first else None for layer in range(layers))


def layer_types(config: ModelConfig) -> list[str]:
    """`layer_types` of config.json for these windows."""
    return ["full_attention" if window is None else "sliding_attention" for window in config.windows]


def one_window(config: ModelConfig) -> int | None:
    """The width that all windowed layers share, as config.json can only name one."""
    return next((window for window in config.windows if window is not None), None)


def with_divisors(config: ModelConfig, divisors: tuple[float, ...]) -> ModelConfig:
    """`config` with the frequency divisors that GGUF files keep as a tensor."""
    return replace(config, ropes=tuple(replace(rope, frequency_divisors=divisors) for rope in config.ropes))
