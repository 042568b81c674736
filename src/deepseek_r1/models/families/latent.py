"""What DeepSeek-V2 and V3 share: latent attention, its name table, and their fields of config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Table, Weight, weight_and_bias
from deepseek_r1.models.families.forms import LATENT_UP, Paired
from deepseek_r1.models.families.gguf_fields import gguf_rope
from deepseek_r1.models.families.qwen3_moe import GGUF_EXPERTS, HF_EXPERTS
from deepseek_r1.models.families.rope_fields import hf_rope, rope_parameters, yarn_mscale


def _mla(config: ModelConfig) -> MLAConfig:
    assert config.mla is not None
    return config.mla


_QUERIES = Paired(lambda c: (c.heads, _mla(c).nope_dim, _mla(c).rope_dim))
_LATENT = Paired(lambda c: (1, _mla(c).kv_rank, _mla(c).rope_dim))
_LAYER, _OURS = "model.layers.{i}", "layers.{i}"

HF: Table = (
    *(weight for weight in llama.HF if "_proj." not in weight.stored or ".mlp." in weight.stored),
    *weight_and_bias(f"{_LAYER}.self_attn.q_proj", f"{_OURS}.attention.q_proj", form=_QUERIES),
    *weight_and_bias(f"{_LAYER}.self_attn.q_a_proj", f"{_OURS}.attention.q_a_proj"),
    Weight(f"{_LAYER}.self_attn.q_a_layernorm.weight", (f"{_OURS}.attention.q_a_norm.weight",)),
    *weight_and_bias(f"{_LAYER}.self_attn.q_b_proj", f"{_OURS}.attention.q_b_proj", form=_QUERIES),
    *weight_and_bias(f"{_LAYER}.self_attn.kv_a_proj_with_mqa", f"{_OURS}.attention.kv_a_proj", form=_LATENT),
    Weight(f"{_LAYER}.self_attn.kv_a_layernorm.weight", (f"{_OURS}.attention.kv_a_norm.weight",)),
    Weight(
        f"{_LAYER}.self_attn.kv_b_proj.weight",
        (f"{_OURS}.attention.k_up.weight", f"{_OURS}.attention.v_up.weight"),
        LATENT_UP,
    ),
    *weight_and_bias(f"{_LAYER}.self_attn.o_proj", f"{_OURS}.attention.o_proj"),
    *HF_EXPERTS,
    *(
        Weight(f"{_LAYER}.mlp.shared_experts.{name}.weight", (f"{_OURS}.mlp.shared.{place}{name}.weight",))
        for name, place in (("gate_proj", "gate_up."), ("up_proj", "gate_up."), ("down_proj", ""))
    ),
)

GGUF: Table = (
    *(weight for weight in llama.GGUF_HALVES if "attn_" not in weight.stored or "attn_norm" in weight.stored),
    Weight("blk.{i}.attn_q.weight", (f"{_OURS}.attention.q_proj.weight",), _QUERIES),
    Weight("blk.{i}.attn_q_a.weight", (f"{_OURS}.attention.q_a_proj.weight",)),
    Weight("blk.{i}.attn_q_a_norm.weight", (f"{_OURS}.attention.q_a_norm.weight",)),
    Weight("blk.{i}.attn_q_b.weight", (f"{_OURS}.attention.q_b_proj.weight",), _QUERIES),
    Weight("blk.{i}.attn_kv_a_mqa.weight", (f"{_OURS}.attention.kv_a_proj.weight",), _LATENT),
    Weight("blk.{i}.attn_kv_a_norm.weight", (f"{_OURS}.attention.kv_a_norm.weight",)),
    Weight("blk.{i}.attn_k_b.weight", (f"{_OURS}.attention.k_up.weight",)),
    Weight("blk.{i}.attn_v_b.weight", (f"{_OURS}.attention.v_up.weight",)),
    Weight("blk.{i}.attn_output.weight", (f"{_OURS}.attention.o_proj.weight",)),
    *GGUF_EXPERTS,
    *(
        Weight(f"blk.{{i}}.ffn_{name}_shexp.weight", (f"{_OURS}.mlp.shared.{place}{name}_proj.weight",))
        for name, place in (("gate", "gate_up."), ("up", "gate_up."), ("down", ""))
    ),
)

# Files from before attention worked on the latent itself keep kv_b_proj whole.
GGUF_OLDER: Table = (
    Weight(
        "blk.{i}.attn_kv_b.weight",
        (f"{_OURS}.attention.k_up.weight", f"{_OURS}.attention.v_up.weight"),
        LATENT_UP,
    ),
)


def hf_config(fields: Fields, family: str, moe: MoEConfig, **options: Any) -> ModelConfig:
    """The fields that V2 and V3 share, around the experts that the family has read."""
    heads = fields.integer("num_attention_heads", most=1 << 12)
    mla = MLAConfig(
        fields.integer("q_lora_rank", most=1 << 16) if "q_lora_rank" in fields else None,
        fields.integer("kv_lora_rank", most=1 << 16),
        fields.integer("qk_nope_head_dim", most=1 << 12),
        fields.integer("qk_rope_head_dim", most=1 << 12),
        fields.integer("v_head_dim", most=1 << 12),
    )
    fields.expect("num_key_value_heads", (heads,))
    fields.expect("rope_interleave", (True,))
    rope = hf_rope(fields, mla.rope_dim, scalings=("default", "yarn"))
    bias = fields.boolean("attention_bias", False)
    return llama.hf_config(
        fields,
        family,
        kv_heads=heads,
        head_dim=mla.nope_dim + mla.rope_dim,
        rope=rope,
        qkv_bias=bias,
        output_bias=bias,
        attention_scale=_scale(mla, rope),
        mla=mla,
        moe=moe if any(moe.layers) else None,
        **options,
    )


def _scale(mla: MLAConfig, rope: RopeConfig) -> float:
    temperature = yarn_mscale(rope.factor, rope.mscale_all_dim) if rope.mscale_all_dim else 1.0
    return float((mla.nope_dim + mla.rope_dim) ** -0.5 * temperature**2)


def hf_experts(fields: Fields, **options: Any) -> MoEConfig:
    """The experts of V2's and V3's config.json: dense layers first, then experts with a shared one."""
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    experts = fields.integer("n_routed_experts", most=1 << 12)
    hidden = fields.integer("moe_intermediate_size", most=1 << 20)
    dense = fields.integer("first_k_dense_replace", 0, least=0, most=layers)
    fields.expect("moe_layer_freq", (1,))
    groups = fields.integer("n_group", 1, most=experts)
    fields.divides("n_routed_experts", experts, groups)
    active_groups = fields.integer("topk_group", groups, most=groups)
    active = fields.integer("num_experts_per_tok", most=active_groups * (experts // groups))
    moe = MoEConfig(
        experts,
        active,
        hidden,
        hidden * fields.integer("n_shared_experts", 0, least=0, most=64),
        tuple(layer >= dense for layer in range(layers)),
        scale=fields.number("routed_scaling_factor", 1.0),
        groups=groups,
        active_groups=active_groups,
    )
    return replace(moe, **options)


def gguf_config(fields: Fields, tensors: set[str], family: str, **options: Any) -> ModelConfig:
    """The GGUF header that V2 and V3 share; `options` go to the experts.

    Newer files describe the latent, as one key head, under the usual keys, and the heads under keys of their own.
    """
    heads = fields.integer("attention.head_count", most=1 << 12)
    rank = fields.integer("attention.kv_lora_rank", most=1 << 16)
    rotated = fields.integer("rope.dimension_count", most=1 << 12)
    latent = "attention.key_length_mla" in fields
    if latent:
        fields.expect("attention.key_length", (rank + rotated,))
        fields.expect("attention.value_length", (rank,))
    fields.expect("attention.head_count_kv", (1,) if latent else (heads,))
    key = "attention.key_length_mla" if latent else "attention.key_length"
    width = fields.integer(key, most=1 << 13)
    if width <= rotated:
        raise fields.fail(key, f"{width} leaves nothing beside the {rotated} columns that rotate")
    mla = MLAConfig(
        fields.integer("attention.q_lora_rank", most=1 << 16) if "attention.q_lora_rank" in fields else None,
        rank,
        width - rotated,
        rotated,
        fields.integer("attention.value_length_mla" if latent else "attention.value_length", most=1 << 12),
    )
    rope = _gguf_rope(fields, rotated)
    return llama.gguf_config(
        fields,
        tensors,
        family,
        reads=_GGUF_READS,
        kv_heads=heads,
        head_dim=width,
        rope=rope,
        attention_scale=_scale(mla, rope),
        mla=mla,
        moe=_gguf_experts(fields, **options),
    )


_GGUF_READS = (
    "expert_count",
    "expert_gating_func",
    "expert_group_count",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "leading_dense_block_count",
    "rope.scaling.yarn_log_multiplier",
)


def _gguf_rope(fields: Fields, dim: int) -> RopeConfig:
    """DeepSeek's rope: with YaRN its temperature goes into the softmax scale alone.

    GGUF keeps a tenth of mscale_all_dim, and takes mscale to be the same (as it is in all of DeepSeek's models).
    """
    rope = gguf_rope(fields, dim)
    if rope.scaling != "yarn":
        fields.expect("rope.scaling.factor", (0.0, 1.0))
        return rope
    all_dim = round(10 * fields.number("rope.scaling.yarn_log_multiplier"), 6)
    return replace(rope, attention_factor=1.0, mscale_all_dim=all_dim)


# The groups of DeepSeek's own models, by their number of experts: older files leave them out.
_GROUPS = {160: (8, 3), 256: (8, 4)}


def _gguf_experts(fields: Fields, **options: Any) -> MoEConfig | None:
    """The experts of a GGUF header, None where every layer is dense."""
    layers = fields.integer("block_count", most=1 << 12)
    dense = fields.integer("leading_dense_block_count", 0, least=0, most=layers)
    if dense == layers:
        return None
    experts = fields.integer("expert_count", most=1 << 12)
    groups, active_groups = _GROUPS.get(experts, (1, 1))
    if "expert_group_count" in fields:
        groups = fields.integer("expert_group_count", most=experts)
        active_groups = fields.integer("expert_group_used_count", most=groups)
    fields.divides("expert_count", experts, groups)
    hidden = fields.integer("expert_feed_forward_length", most=1 << 20)
    moe = MoEConfig(
        experts,
        fields.integer("expert_used_count", most=active_groups * (experts // groups)),
        hidden,
        hidden * fields.integer("expert_shared_count", 0, least=0, most=64),
        tuple(layer >= dense for layer in range(layers)),
        scale=fields.number("expert_weights_scale", 1.0),
        groups=groups,
        active_groups=active_groups,
    )
    return replace(moe, **options)


def to_hf(config: ModelConfig, architecture: str, **extra: Any) -> dict[str, Any]:
    """The config.json that `hf_config` and transformers read."""
    mla, moe = _mla(config), config.moe
    fields = llama.to_hf(
        config,
        architecture,
        q_lora_rank=mla.q_rank,
        kv_lora_rank=mla.kv_rank,
        qk_nope_head_dim=mla.nope_dim,
        qk_rope_head_dim=mla.rope_dim,
        v_head_dim=mla.value_dim,
        rope_parameters=rope_parameters(config.ropes[0], mla.rope_dim),
        rope_interleave=True,
        first_k_dense_replace=config.layers if moe is None else moe.layers.index(True),
    )
    del fields["head_dim"]
    if moe is not None:
        fields |= {
            "n_routed_experts": moe.experts,
            "num_experts_per_tok": moe.active,
            "moe_intermediate_size": moe.hidden_size,
            "n_shared_experts": moe.shared_hidden_size // moe.hidden_size,
            "routed_scaling_factor": moe.scale,
            "n_group": moe.groups,
            "topk_group": moe.active_groups,
            "norm_topk_prob": moe.normalise,
        }
    return fields | extra
