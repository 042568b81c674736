"""Llama 2 and 3, SmolLM2 and everything that follows their layout; the other families here vary it."""

from __future__ import annotations

from typing import Any

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig
from deepseek_r1.models.families.base import Family, Table, Weight, changed, weight_and_bias
from deepseek_r1.models.families.forms import PAIRED_KEYS, PAIRED_QUERIES
from deepseek_r1.models.families.gguf_fields import gguf_head_dim, gguf_rope, refuse_options
from deepseek_r1.models.families.rope_fields import hf_rope, rope_parameters

_LINEARS = (
    ("attention.qkv.q_proj", "self_attn.q_proj", "attn_q"),
    ("attention.qkv.k_proj", "self_attn.k_proj", "attn_k"),
    ("attention.qkv.v_proj", "self_attn.v_proj", "attn_v"),
    ("attention.o_proj", "self_attn.o_proj", "attn_output"),
    ("mlp.gate_up.gate_proj", "mlp.gate_proj", "ffn_gate"),
    ("mlp.gate_up.up_proj", "mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "mlp.down_proj", "ffn_down"),
)

HF: Table = (
    Weight("model.embed_tokens.weight", ("embedding.weight",)),
    *(
        entry
        for ours, hf, _ in _LINEARS
        for entry in weight_and_bias(f"model.layers.{{i}}.{hf}", f"layers.{{i}}.{ours}")
    ),
    Weight("model.layers.{i}.input_layernorm.weight", ("layers.{i}.attention_norm.weight",)),
    Weight("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.mlp_norm.weight",)),
    Weight("model.norm.weight", ("norm.weight",)),
    Weight("lm_head.weight", ("lm_head.weight",)),
)

# Files of the halves convention (Qwen and most others); llama's own GGUF files reorder q and k.
GGUF_HALVES: Table = (
    Weight("token_embd.weight", ("embedding.weight",)),
    *(entry for ours, _, gguf in _LINEARS for entry in weight_and_bias(f"blk.{{i}}.{gguf}", f"layers.{{i}}.{ours}")),
    Weight("blk.{i}.attn_norm.weight", ("layers.{i}.attention_norm.weight",)),
    Weight("blk.{i}.ffn_norm.weight", ("layers.{i}.mlp_norm.weight",)),
    Weight("output_norm.weight", ("norm.weight",)),
    Weight("output.weight", ("lm_head.weight",)),
)

GGUF: Table = changed(
    GGUF_HALVES,
    *weight_and_bias("blk.{i}.attn_q", "layers.{i}.attention.qkv.q_proj", form=PAIRED_QUERIES),
    *weight_and_bias("blk.{i}.attn_k", "layers.{i}.attention.qkv.k_proj", form=PAIRED_KEYS),
)

# The norms on q and k, of the families that have them.
HF_QK_NORMS: Table = tuple(
    Weight(f"model.layers.{{i}}.self_attn.{x}_norm.weight", (f"layers.{{i}}.attention.{x}_norm.weight",)) for x in "qk"
)
GGUF_QK_NORMS: Table = tuple(
    Weight(f"blk.{{i}}.attn_{x}_norm.weight", (f"layers.{{i}}.attention.{x}_norm.weight",)) for x in "qk"
)

# The norms after attention and MLP, likewise.
GGUF_POST_NORMS: Table = (
    Weight("blk.{i}.post_attention_norm.weight", ("layers.{i}.attention_post_norm.weight",)),
    Weight("blk.{i}.post_ffw_norm.weight", ("layers.{i}.mlp_post_norm.weight",)),
)


def hf_config(fields: Fields, family: str = "llama", *, rope: RopeConfig | None = None, **options: Any) -> ModelConfig:
    """The fields that every Llama-like config.json has; `options` fill in or replace what the family has otherwise."""
    if "activation" not in options:
        fields.expect("hidden_act", ("silu",))
    heads = fields.integer("num_attention_heads", most=1 << 12)
    layers = fields.integer("num_hidden_layers", most=1 << 12)
    hidden = fields.integer("hidden_size", most=1 << 20)
    kv_heads = fields.integer("num_key_value_heads", heads, most=1 << 12)
    fields.divides("num_attention_heads", heads, kv_heads)
    head_dim = options["head_dim"] if "head_dim" in options else hf_head_dim(fields)
    values: dict[str, Any] = dict(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", most=1 << 20),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=fields.integer("max_position_embeddings", 2048),
        norm_eps=fields.number("rms_norm_eps", 1e-6, most=1),
        ropes=(hf_rope(fields, head_dim) if rope is None else rope,),
        layer_ropes=(0,) * layers,
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        windows=(None,) * layers,
    )
    return ModelConfig(**(values | options))


def hf_head_dim(fields: Fields) -> int:
    """The width of one head, given or following from the others."""
    heads = fields.integer("num_attention_heads", most=1 << 12)
    hidden = fields.integer("hidden_size", most=1 << 20)
    if "head_dim" not in fields:
        fields.divides("hidden_size", hidden, heads)
    return fields.integer("head_dim", hidden // heads, most=1 << 12)


def to_hf(config: ModelConfig, architecture: str, **extra: Any) -> dict[str, Any]:
    """The config.json that `hf_config` and transformers read; `extra` is what the family adds.

    Raises `UnsupportedError` for frequency divisors of a GGUF file, which config.json has no place for.
    """
    if config.ropes[0].frequency_divisors is not None and "rope_parameters" not in extra:
        raise UnsupportedError(
            f"config.json has no place for the frequency divisors that this {config.family} model was read with",
            remedy="start from the model's safetensors, whose config.json names the scaling they come from",
        )
    head_dim = config.head_dim
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": head_dim,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rope_parameters(config.ropes[0], head_dim),
        "attention_bias": config.qkv_bias,
    }
    return fields | extra


def llama_hf(fields: Fields) -> ModelConfig:
    """Llama's own config.json: optional biases on attention and MLP."""
    bias = fields.boolean("attention_bias", False)
    mlp_bias = fields.boolean("mlp_bias", False)
    return hf_config(fields, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def gguf_config(
    fields: Fields,
    tensors: set[str],
    family: str = "llama",
    *,
    reads: tuple[str, ...] = ("attention.sliding_window",),
    rope: RopeConfig | None = None,
    **options: Any,
) -> ModelConfig:
    """A Llama-like GGUF header; biases and tied embeddings show in the tensor names.

    `options` fill in or replace what the family has otherwise; `reads` are those keys that change the mathematics which
    the family reads. Without a `rope` of the family's whole heads rotate.
    """
    refuse_options(fields, reads)
    heads = fields.integer("attention.head_count", most=1 << 12)
    layers = fields.integer("block_count", most=1 << 12)
    hidden = fields.integer("embedding_length", most=1 << 20)
    kv_heads = fields.integer("attention.head_count_kv", heads, most=1 << 12)
    fields.divides("attention.head_count", heads, kv_heads)
    head_dim = options["head_dim"] if "head_dim" in options else gguf_head_dim(fields)
    if rope is None:
        fields.expect("rope.dimension_count", (head_dim,))
        rope = gguf_rope(fields, head_dim)
    window = fields.integer("attention.sliding_window", 0, least=0) or None
    values: dict[str, Any] = dict(
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
        ropes=(rope,),
        layer_ropes=(0,) * layers,
        tie_embeddings="output.weight" not in tensors,
        windows=(window,) * layers,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
    )
    return ModelConfig(**(values | options))


FAMILY = Family(
    "llama",
    llama_hf,
    lambda config: to_hf(config, "LlamaForCausalLM", mlp_bias=config.mlp_bias),
    HF,
    gguf_config,
    GGUF,
)
