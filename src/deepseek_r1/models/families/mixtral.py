"""Mixtral: Mistral's attention with a mixture of experts in every layer."""

from __future__ import annotations

from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, MoEConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, Table, Weight
from deepseek_r1.models.families.qwen3_moe import GGUF_EXPERTS, gguf_config
from deepseek_r1.models.families.rope_fields import hf_windows, one_window

HF = (
    *llama.HF,
    Weight("model.layers.{i}.block_sparse_moe.gate.weight", ("layers.{i}.mlp.router.weight",)),
    *(
        Weight(
            f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{theirs}.weight",
            (f"layers.{{i}}.mlp.experts.{ours}.weight",),
        )
        for theirs, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
    ),
)

# The first converters stored every expert apart.
GGUF_OLDER: Table = tuple(
    Weight(f"blk.{{i}}.ffn_{name}.{{e}}.weight", (f"layers.{{i}}.mlp.experts.{name}_proj.weight",))
    for name in ("gate", "up", "down")
)


def from_hf(fields: Fields) -> ModelConfig:
    """Mixtral's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    experts = fields.integer("num_local_experts", most=1 << 12)
    active = fields.integer("num_experts_per_tok", most=experts)
    hidden = fields.integer("intermediate_size", most=1 << 20)
    return llama.hf_config(
        fields,
        "mixtral",
        windows=hf_windows(fields, layers, opt_in=False),
        moe=MoEConfig(experts, active, hidden, 0, (True,) * layers),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Mixtral's config.json."""
    assert config.moe is not None
    return llama.to_hf(
        config,
        "MixtralForCausalLM",
        sliding_window=one_window(config),
        num_local_experts=config.moe.experts,
        num_experts_per_tok=config.moe.active,
    )


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Mixtral's GGUF header, which names the architecture "llama"."""
    return gguf_config(fields, tensors, "mixtral")


FAMILY = Family("mixtral", from_hf, to_hf, HF, from_gguf, (*llama.GGUF, *GGUF_EXPERTS), GGUF_OLDER)
