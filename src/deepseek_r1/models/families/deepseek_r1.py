"""The project's own architecture: any combination of the decoder's options, written down field by field.

Models of the other families are shared with other programs; this one is for what those have no name for: rings,
gated-delta layers and mixtures of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from deepseek_r1.models.config import (
    MIXERS,
    DeltaConfig,
    Fields,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RingConfig,
    RopeConfig,
)
from deepseek_r1.models.families.base import Family

_MOST_LAYERS, _MOST_HEADS, _MOST_WIDTH = 1 << 12, 1 << 12, 1 << 20


def from_hf(fields: Fields) -> ModelConfig:
    """The config.json that `to_hf` writes; every field is checked."""
    layers = fields.integer("layers", most=_MOST_LAYERS)
    heads = fields.integer("heads", most=_MOST_HEADS)
    kv_heads = fields.integer("kv_heads", most=_MOST_HEADS)
    fields.divides("heads", heads, kv_heads)
    hidden = fields.integer("hidden_size", most=_MOST_WIDTH)
    ropes = _ropes(fields)
    config = ModelConfig(
        family="deepseek_r1",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", most=_MOST_WIDTH),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", most=1 << 12),
        max_position=fields.integer("max_position"),
        norm_eps=fields.number("norm_eps", most=1),
        ropes=ropes,
        layer_ropes=tuple(fields.choices("layer_ropes", (None, *range(len(ropes))), layers, default=0)),
        tie_embeddings=fields.boolean("tie_embeddings", False),
        windows=tuple(_window(fields, value) for value in fields.items("windows", layers, default=None)),
        qkv_bias=fields.boolean("qkv_bias", False),
        output_bias=fields.boolean("output_bias", False),
        mlp_bias=fields.boolean("mlp_bias", False),
        qk_norm=fields.choice("qk_norm", (None, "head", "full")),
        norms=fields.choice("norms", ("pre", "post", "sandwich")),
        activation=fields.choice("activation", ("silu", "gelu_tanh")),
        attention_scale=fields.number("attention_scale") if "attention_scale" in fields else None,
        embedding_scale=fields.number("embedding_scale", 1.0),
        residual_scale=fields.number("residual_scale", 1.0),
        logits_scale=fields.number("logits_scale", 1.0),
        mla=_mla(fields.section("mla")) if "mla" in fields else None,
        moe=_moe(fields.section("moe"), layers) if "moe" in fields else None,
        mtp_layers=fields.integer("mtp_layers", 0, least=0, most=16),
        mixers=tuple(fields.choices("mixers", MIXERS, layers)) if fields.values.get("mixers") else (),
        ring=_ring(fields.section("ring")) if "ring" in fields else None,
        delta=_delta(fields.section("delta")) if "delta" in fields else None,
    )
    return _consistent(fields, config)


def _consistent(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Rules that go beyond one field."""
    if "ring" in config.mixers and config.ring is None:
        raise fields.fail("ring", "is missing, and layers are rings")
    if "delta" in config.mixers and config.delta is None:
        raise fields.fail("delta", "is missing, and layers are gated-delta")
    if config.mla is not None and (config.qk_norm is not None or any(config.windows)):
        raise fields.fail("mla", "goes with neither qk_norm nor windows")
    width = config.mla.rope_dim if config.mla is not None else config.head_dim
    if any(rope.dim > width for rope in config.ropes):
        raise fields.fail("ropes", f"rotate more than the {width} columns there are")
    for layer in range(config.layers):
        if config.mixer(layer) == "ring" and config.windows[layer] is not None:
            raise fields.fail("windows", f"names one for layer {layer}, which is a ring")
        if config.mla is not None and config.mixer(layer) != "delta" and config.layer_ropes[layer] is None:
            raise fields.fail("layer_ropes", f"leaves layer {layer} without rope, which latent attention needs")
    return config


def _ropes(fields: Fields) -> tuple[RopeConfig, ...]:
    out = []
    for entry in fields.sections("ropes"):
        dim = entry.integer("dim", most=1 << 12)
        entry.divides("dim", dim, 2)
        divisors = entry.numbers("frequency_divisors", dim // 2) if "frequency_divisors" in entry else None
        out.append(
            RopeConfig(
                entry.number("theta"),
                dim,
                entry.choice("scaling", ("none", "linear", "llama3", "yarn")),
                entry.number("factor", 1.0),
                entry.number("low_freq_factor", 1.0),
                entry.number("high_freq_factor", 4.0),
                entry.integer("original_max_position", 8192),
                divisors,
                entry.number("beta_fast", 32.0),
                entry.number("beta_slow", 1.0),
                entry.boolean("truncate", True),
                entry.number("attention_factor", 1.0),
            )
        )
    return tuple(out)


def _window(fields: Fields, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise fields.fail("windows", f"holds {value!r}, neither null nor a size")
    return value


def _mla(fields: Fields) -> MLAConfig:
    rank = fields.integer("q_rank", most=1 << 16) if "q_rank" in fields else None
    return MLAConfig(
        rank,
        fields.integer("kv_rank", most=1 << 16),
        fields.integer("nope_dim", most=1 << 12),
        fields.integer("rope_dim", most=1 << 12),
        fields.integer("value_dim", most=1 << 12),
        fields.number("norm_eps", 1e-6, most=1),
    )


def _moe(fields: Fields, layers: int) -> MoEConfig:
    experts = fields.integer("experts", most=1 << 12)
    groups = fields.integer("groups", 1, most=experts)
    fields.divides("experts", experts, groups)
    active_groups = fields.integer("active_groups", groups, most=groups)
    bias = fields.boolean("bias", False)
    if bias and groups > 1 and experts // groups < 2:
        raise fields.fail("groups", "leaves fewer than two experts in a group, which is judged by its best two")
    return MoEConfig(
        experts,
        fields.integer("active", most=active_groups * (experts // groups)),
        fields.integer("hidden_size", most=_MOST_WIDTH),
        fields.integer("shared_hidden_size", 0, least=0, most=_MOST_WIDTH),
        tuple(fields.choices("layers", (True, False), layers, default=True)),
        fields.choice("score", ("softmax", "sigmoid")),
        fields.boolean("normalise", True),
        fields.number("scale", 1.0),
        groups,
        active_groups,
        bias,
    )


def _ring(fields: Fields) -> RingConfig:
    every = fields.integer("global_every") if "global_every" in fields else None
    return RingConfig(fields.integer("window", 512), every)


def _delta(fields: Fields) -> DeltaConfig:
    keys = fields.integer("key_heads", most=_MOST_HEADS)
    values = fields.integer("value_heads", most=_MOST_HEADS)
    fields.divides("value_heads", values, keys)
    return DeltaConfig(
        keys,
        values,
        fields.integer("key_dim", most=1 << 12),
        fields.integer("value_dim", most=1 << 12),
        fields.integer("conv_kernel", 4, least=2, most=64),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Every field of the configuration, under its name here."""
    fields = dataclasses.asdict(config)
    del fields["family"]
    for rope in fields["ropes"]:
        del rope["mscale_all_dim"]  # it only serves the way back to DeepSeek's own files
    return {"model_type": "deepseek_r1", **fields}


FAMILY = Family("deepseek_r1", from_hf, to_hf, None)
