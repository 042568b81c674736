"""Qwen 3 mixtures of experts: Qwen 3's attention; softmax over all experts, then the best of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig, MoEConfig
from deepseek_r1.models.families import llama, qwen3
from deepseek_r1.models.families.base import Family, Table, Weight
from deepseek_r1.models.families.qwen2 import windows_to_hf
from deepseek_r1.models.families.rope_fields import hf_windows

# Each expert's matrices, as DeepSeek and Qwen store them too.
HF_EXPERTS: Table = (
    Weight("model.layers.{i}.mlp.gate.weight", ("layers.{i}.mlp.router.weight",)),
    *(
        Weight(f"model.layers.{{i}}.mlp.experts.{{e}}.{name}.weight", (f"layers.{{i}}.mlp.experts.{name}.weight",))
        for name in ("gate_proj", "up_proj", "down_proj")
    ),
)

# GGUF keeps all experts of a layer in one tensor, in our layout.
GGUF_EXPERTS: Table = (
    Weight("blk.{i}.ffn_gate_inp.weight", ("layers.{i}.mlp.router.weight",)),
    *(
        Weight(f"blk.{{i}}.ffn_{name}_exps.weight", (f"layers.{{i}}.mlp.experts.{name}_proj.weight",))
        for name in ("gate", "up", "down")
    ),
)


def from_hf(fields: Fields) -> ModelConfig:
    """Qwen 3 MoE's config.json."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    bias = fields.boolean("attention_bias", False)
    experts = fields.integer("num_experts" if "num_experts" in fields else "num_local_experts", most=1 << 12)
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise fields.fail("mlp_only_layers", "is not a list of layer numbers")
    moe = MoEConfig(
        experts,
        fields.integer("num_experts_per_tok", most=experts),
        fields.integer("moe_intermediate_size", most=1 << 20),
        0,
        tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers)),
        normalise=fields.boolean("norm_topk_prob", False),
    )
    windows = hf_windows(fields, layers, opt_in=True)
    return llama.hf_config(
        fields, "qwen3_moe", qk_norm="head", qkv_bias=bias, output_bias=bias, windows=windows, moe=moe
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Qwen 3 MoE's config.json."""
    moe = config.moe
    assert moe is not None
    return llama.to_hf(
        config,
        "Qwen3MoeForCausalLM",
        num_experts=moe.experts,
        num_experts_per_tok=moe.active,
        moe_intermediate_size=moe.hidden_size,
        norm_topk_prob=moe.normalise,
        mlp_only_layers=[layer for layer, has in enumerate(moe.layers) if not has],
        **windows_to_hf(config),
    )


def gguf_config(fields: Fields, tensors: set[str], family: str, **options: Any) -> ModelConfig:
    """A GGUF header with experts in every layer, chosen by softmax and divided by the sum of the chosen scores."""
    reads = ("attention.sliding_window", "expert_count")
    config = llama.gguf_config(fields, tensors, family, reads=reads, **options)
    experts = fields.integer("expert_count", most=1 << 12)
    active = fields.integer("expert_used_count", most=experts)
    hidden = fields.integer("expert_feed_forward_length", config.intermediate_size, most=1 << 20)
    return replace(config, moe=MoEConfig(experts, active, hidden, 0, (True,) * config.layers))


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """Qwen 3 MoE's GGUF header; its models all divide by the sum of the chosen scores."""
    return gguf_config(fields, tensors, "qwen3_moe", qk_norm="head")


FAMILY = Family("qwen3_moe", from_hf, to_hf, (*qwen3.HF, *HF_EXPERTS), from_gguf, (*qwen3.GGUF, *GGUF_EXPERTS))
