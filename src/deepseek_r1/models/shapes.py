"""The name and shape of every weight of a decoder, from its configuration alone: counted and planned without torch."""

from __future__ import annotations

import math

from deepseek_r1.config.precision import Dtype
from deepseek_r1.models.config import DeltaConfig, MLAConfig, ModelConfig, MoEConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Every weight of `Decoder(config)` by its name there; a tied output layer is not counted again."""
    hidden = config.hidden_size
    shapes: Shapes = {"embedding.weight": (config.vocab_size, hidden)}
    for layer in range(config.layers):
        shapes.update(_layer(config, layer, f"layers.{layer}"))
    shapes["norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.mtp_layers):
        prefix = f"mtp.{index}"
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("embedding_norm", "hidden_norm", "norm")}
        shapes[f"{prefix}.project.weight"] = (hidden, 2 * hidden)
        shapes |= _layer(config, config.layers + index, f"{prefix}.block")
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, tied ones once, prediction modules included."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def active_count(config: ModelConfig) -> int:
    """Number of weights that one token passes through: its experts only, and of the embedding table its row."""
    active = 0
    for name, shape in parameter_shapes(config).items():
        if name.startswith("mtp."):
            continue
        if name == "embedding.weight" and not config.tie_embeddings:
            active += shape[1]
        elif ".experts." in name and config.moe is not None:
            active += math.prod(shape) // config.moe.experts * config.moe.active
        else:
            active += math.prod(shape)
    return active


def kv_row_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """Bytes that one layer caches per token: keys and values, or the latent of latent attention (see `KVLayout`)."""
    if config.mla is not None:
        width, heads = config.mla.kv_rank + config.mla.rope_dim, 1
    else:
        width, heads = 2 * config.kv_heads * config.head_dim, 2 * config.kv_heads
    if dtype == "int8":
        return -(-width // 4) * 4 + 4 * heads
    return width * (4 if dtype == "fp32" else 2)


def _layer(config: ModelConfig, layer: int, prefix: str) -> Shapes:
    hidden = config.hidden_size
    shapes: Shapes = {}
    places = {"pre": ("norm",), "post": ("post_norm",), "sandwich": ("norm", "post_norm")}[config.norms]
    for part in ("attention", "mlp"):
        shapes |= {f"{prefix}.{part}_{place}.weight": (hidden,) for place in places}
    if config.delta is not None and config.mixer(layer) == "delta":
        attention = _delta(config, config.delta)
    else:
        attention = _attention(config) if config.mla is None else _latent_attention(config, config.mla)
    shapes |= {f"{prefix}.attention.{name}": shape for name, shape in attention.items()}
    if config.moe is not None and config.has_experts(layer):
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in _experts(config, config.moe).items()}
    else:
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in _mlp(config, config.intermediate_size).items()}
    return shapes


def _attention(config: ModelConfig) -> Shapes:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    widths = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    shapes: Shapes = {f"qkv.{name}.weight": (width, config.hidden_size) for name, width in widths.items()}
    if config.qkv_bias:
        shapes |= {f"qkv.{name}.bias": (width,) for name, width in widths.items()}
    shapes["o_proj.weight"] = (config.hidden_size, queries)
    if config.output_bias:
        shapes["o_proj.bias"] = (config.hidden_size,)
    if config.qk_norm is not None:
        full = config.qk_norm == "full"
        shapes["q_norm.weight"] = (queries if full else config.head_dim,)
        shapes["k_norm.weight"] = (keys if full else config.head_dim,)
    return shapes


def _latent_attention(config: ModelConfig, mla: MLAConfig) -> Shapes:
    hidden, heads = config.hidden_size, config.heads
    queries = heads * (mla.nope_dim + mla.rope_dim)
    shapes: Shapes = {}
    if mla.q_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes["q_a_proj.weight"] = (mla.q_rank, hidden)
        shapes["q_a_norm.weight"] = (mla.q_rank,)
        shapes["q_b_proj.weight"] = (queries, mla.q_rank)
    shapes["kv_a_proj.weight"] = (mla.kv_rank + mla.rope_dim, hidden)
    shapes["kv_a_norm.weight"] = (mla.kv_rank,)
    shapes["k_up.weight"] = (heads, mla.kv_rank, mla.nope_dim)
    shapes["v_up.weight"] = (heads, mla.value_dim, mla.kv_rank)
    shapes["o_proj.weight"] = (hidden, heads * mla.value_dim)
    if config.qkv_bias:
        shapes |= {name.replace("weight", "bias"): (shapes[name][0],) for name in list(shapes) if "_a_proj" in name}
    if config.output_bias:
        shapes["o_proj.bias"] = (hidden,)
    return shapes


def _delta(config: ModelConfig, delta: DeltaConfig) -> Shapes:
    hidden = config.hidden_size
    keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
    widths = {"q": keys, "k": keys, "v": values, "gate": values, "beta": delta.value_heads, "decay": delta.value_heads}
    shapes: Shapes = {f"inputs.{name}_proj.weight": (width, hidden) for name, width in widths.items()}
    shapes["conv_weight"] = (2 * keys + values, delta.conv_kernel)
    shapes |= {name: (delta.value_heads,) for name in ("A_log", "dt_bias")}
    shapes["norm.weight"] = (delta.value_dim,)
    shapes["o_proj.weight"] = (hidden, values)
    return shapes


def _mlp(config: ModelConfig, width: int) -> Shapes:
    hidden = config.hidden_size
    shapes: Shapes = {f"gate_up.{name}.weight": (width, hidden) for name in ("gate_proj", "up_proj")}
    shapes["down_proj.weight"] = (hidden, width)
    if config.mlp_bias:
        shapes |= {name.replace("weight", "bias"): (shape[0],) for name, shape in list(shapes.items())}
    return shapes


def _experts(config: ModelConfig, moe: MoEConfig) -> Shapes:
    hidden = config.hidden_size
    shapes: Shapes = {"router.weight": (moe.experts, hidden)}
    if moe.bias:
        shapes["router.bias"] = (moe.experts,)
    shapes |= {f"experts.{name}.weight": (moe.experts, moe.hidden_size, hidden) for name in ("gate_proj", "up_proj")}
    shapes["experts.down_proj.weight"] = (moe.experts, hidden, moe.hidden_size)
    if moe.shared_hidden_size:
        shared = _mlp(config, moe.shared_hidden_size)
        shapes |= {f"shared.{name}": shape for name, shape in shared.items()}
    return shapes
