"""OLMo 2: norms after attention and MLP instead of before, and one norm over all heads of q and of k."""

from __future__ import annotations

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import llama
from deepseek_r1.models.families.base import Family, Weight

HF = (
    *(weight for weight in llama.HF if "layernorm" not in weight.stored),
    *llama.HF_QK_NORMS,
    Weight("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.attention_post_norm.weight",)),
    Weight("model.layers.{i}.post_feedforward_layernorm.weight", ("layers.{i}.mlp_post_norm.weight",)),
)

GGUF = (
    *(weight for weight in llama.GGUF_HALVES if "attn_norm" not in weight.stored and "ffn_norm" not in weight.stored),
    *llama.GGUF_QK_NORMS,
    *llama.GGUF_POST_NORMS,
)


def from_hf(fields: Fields) -> ModelConfig:
    """OLMo 2's config.json."""
    bias = fields.boolean("attention_bias", False)
    return llama.hf_config(fields, "olmo2", qkv_bias=bias, output_bias=bias, qk_norm="full", norms="post")


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """OLMo 2's GGUF header; OLMo 3 shares the name and has windows, which are refused."""
    return llama.gguf_config(fields, tensors, "olmo2", reads=(), qk_norm="full", norms="post")


FAMILY = Family(
    "olmo2",
    from_hf,
    lambda config: llama.to_hf(config, "Olmo2ForCausalLM", pad_token_id=None),
    HF,
    from_gguf,
    GGUF,
)
