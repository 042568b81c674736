"""GLM 4 (0414): half of each head rotates, in pairs; norms before and after each part; gate and up stored as one."""

from __future__ import annotations

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, Weight, changed, weight_and_bias
from deepseek_r1.models.families.forms import PAIRED_KEYS, PAIRED_QUERIES
from deepseek_r1.models.families.gguf_fields import gguf_head_dim, gguf_rope
from deepseek_r1.models.families.phi3 import GATE_UP
from deepseek_r1.models.families.rope_fields import hf_rope

_LAYER = "model.layers.{i}"

HF = (
    *changed(
        llama.HF,
        *weight_and_bias(f"{_LAYER}.self_attn.q_proj", "layers.{i}.attention.qkv.q_proj", form=PAIRED_QUERIES),
        *weight_and_bias(f"{_LAYER}.self_attn.k_proj", "layers.{i}.attention.qkv.k_proj", form=PAIRED_KEYS),
        *weight_and_bias(f"{_LAYER}.mlp.gate_up_proj", *GATE_UP),
    ),
    Weight(f"{_LAYER}.post_self_attn_layernorm.weight", ("layers.{i}.attention_post_norm.weight",)),
    Weight(f"{_LAYER}.post_mlp_layernorm.weight", ("layers.{i}.mlp_post_norm.weight",)),
)

GGUF = (
    *changed(llama.GGUF, *weight_and_bias("blk.{i}.ffn_up", *GATE_UP)),
    *llama.GGUF_POST_NORMS,
)


def from_hf(fields: Fields) -> ModelConfig:
    """GLM 4's config.json."""
    rope = hf_rope(fields, llama.hf_head_dim(fields), partial=0.5)
    bias = fields.boolean("attention_bias", True)
    return llama.hf_config(fields, "glm4", rope=rope, qkv_bias=bias, norms="sandwich")


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """GLM 4's GGUF header; its rotated rows stand in pairs, as in GLM's own files."""
    rope = gguf_rope(fields, fields.integer("rope.dimension_count", most=gguf_head_dim(fields)))
    return llama.gguf_config(fields, tensors, "glm4", reads=(), rope=rope, norms="sandwich")


FAMILY = Family(
    "glm4",
    from_hf,
    lambda config: llama.to_hf(config, "Glm4ForCausalLM", pad_token_id=None),
    HF,
    from_gguf,
    GGUF,
)
