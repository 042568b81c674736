"""Writes GGUF files of every family as llama.cpp's converter does: its names, its keys, its row orders.

Nothing here comes from the project: names and keys are those of the `gguf` package.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PretrainedConfig

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "glm4": gguf.MODEL_ARCH.GLM4,
}

# The architectures whose rope turns neighbouring rows, while their Hugging Face files keep each head in two halves.
REORDERED = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.GRANITE, gguf.MODEL_ARCH.SMOLLM3)

LLM, ATTENTION, ROPE = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope


def write_gguf(
    source: Path,
    path: Path,
    *,
    older: bool = False,
    order: bool = True,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """The GGUF file of the Hugging Face directory `source`.

    `older` writes the names from before experts were merged, and from before attention worked on the latent. Without
    `order` the tensors stay as Hugging Face's files have them. `changes` are laid over the header (None removes a key,
    names without the architecture), `tensors` over the tensors.
    """
    config = AutoConfig.from_pretrained(source)
    arch = ARCHITECTURES[config.model_type]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, name)
    keys = {key.removeprefix("{arch}."): value for key, value in header(config, older).items()}
    for key, value in (keys | (changes or {})).items():
        add_value(writer, f"{name}.{key}", value)
    weights = converted(config, arch, load_file(source / "model.safetensors"), older=older, order=order)
    for key, weight in (weights | (tensors or {})).items():
        writer.add_tensor(key, weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def header(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    """Keys without the architecture -> values."""
    heads = config.num_attention_heads
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    keys: dict[str, Any] = {
        LLM.BLOCK_COUNT: config.num_hidden_layers,
        LLM.CONTEXT_LENGTH: config.max_position_embeddings,
        LLM.EMBEDDING_LENGTH: config.hidden_size,
        LLM.FEED_FORWARD_LENGTH: config.intermediate_size,
        ATTENTION.HEAD_COUNT: heads,
        ATTENTION.HEAD_COUNT_KV: config.num_key_value_heads,
        ATTENTION.LAYERNORM_RMS_EPS: config.rms_norm_eps,
        ROPE.FREQ_BASE: full["rope_theta"],
    }
    if full["rope_type"] == "linear":
        keys |= {ROPE.SCALING_TYPE: "linear", ROPE.SCALING_FACTOR: full["factor"]}
    if full["rope_type"] == "yarn":
        keys |= {
            ROPE.SCALING_TYPE: "yarn",
            ROPE.SCALING_FACTOR: full["factor"],
            ROPE.SCALING_ORIG_CTX_LEN: full["original_max_position_embeddings"],
        }
    if getattr(config, "head_dim", None) and config.model_type != "granite":
        keys |= {ATTENTION.KEY_LENGTH: config.head_dim, ATTENTION.VALUE_LENGTH: config.head_dim}
    return keys | FAMILY_KEYS.get(config.model_type, lambda config, older: {})(config, older)


def experts(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    count = getattr(config, "num_local_experts", None) or config.num_experts
    keys: dict[str, Any] = {LLM.EXPERT_COUNT: count, LLM.EXPERT_USED_COUNT: config.num_experts_per_tok}
    if config.model_type == "qwen3_moe":
        keys[LLM.EXPERT_FEED_FORWARD_LENGTH] = config.moe_intermediate_size
    return keys


def deepseek(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    keys: dict[str, Any] = {
        LLM.VOCAB_SIZE: config.vocab_size,
        LLM.LEADING_DENSE_BLOCK_COUNT: config.first_k_dense_replace,
        LLM.EXPERT_FEED_FORWARD_LENGTH: config.moe_intermediate_size,
        LLM.EXPERT_COUNT: config.n_routed_experts,
        LLM.EXPERT_USED_COUNT: config.num_experts_per_tok,
        LLM.EXPERT_SHARED_COUNT: config.n_shared_experts,
        LLM.EXPERT_WEIGHTS_SCALE: config.routed_scaling_factor,
        LLM.EXPERT_WEIGHTS_NORM: bool(config.norm_topk_prob) or None,
        ATTENTION.Q_LORA_RANK: config.q_lora_rank,
        ATTENTION.KV_LORA_RANK: config.kv_lora_rank,
        ROPE.DIMENSION_COUNT: config.qk_rope_head_dim,
    }
    if config.model_type == "deepseek_v3":
        keys[LLM.EXPERT_GATING_FUNC] = int(gguf.ExpertGatingFuncType.SIGMOID)
    if older:
        keys |= {ATTENTION.KEY_LENGTH: width, ATTENTION.VALUE_LENGTH: config.v_head_dim}
    else:
        keys |= {
            ATTENTION.HEAD_COUNT_KV: 1,
            ATTENTION.KEY_LENGTH: config.kv_lora_rank + config.qk_rope_head_dim,
            ATTENTION.VALUE_LENGTH: config.kv_lora_rank,
            ATTENTION.KEY_LENGTH_MLA: width,
            ATTENTION.VALUE_LENGTH_MLA: config.v_head_dim,
            LLM.EXPERT_GROUP_COUNT: config.n_group,
            LLM.EXPERT_GROUP_USED_COUNT: config.topk_group,
        }
    if "mscale_all_dim" in config.rope_parameters:
        keys[ROPE.SCALING_YARN_LOG_MUL] = 0.1 * config.rope_parameters["mscale_all_dim"]
    return keys


def gemma3(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    keys: dict[str, Any] = {ATTENTION.SLIDING_WINDOW: config.sliding_window}
    if not older:
        keys[ROPE.FREQ_BASE_SWA] = config.rope_parameters["sliding_attention"]["rope_theta"]
    return keys


def phi3(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    share = rope.get("partial_rotary_factor", 1.0)
    keys: dict[str, Any] = {
        ROPE.DIMENSION_COUNT: int(share * config.hidden_size) // config.num_attention_heads,
        ROPE.SCALING_ORIG_CTX_LEN: original,
        ATTENTION.SLIDING_WINDOW: config.sliding_window or 0,
    }
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / original
        keys[ROPE.SCALING_ATTN_FACTOR] = math.sqrt(1 + math.log(scale) / math.log(original))
    return keys


def granite(config: PretrainedConfig, older: bool) -> dict[str, Any]:
    return {
        ATTENTION.SCALE: config.attention_multiplier,
        LLM.EMBEDDING_SCALE: config.embedding_multiplier,
        LLM.RESIDUAL_SCALE: config.residual_multiplier,
        LLM.LOGIT_SCALE: config.logits_scaling,
        ROPE.DIMENSION_COUNT: config.hidden_size // config.num_attention_heads,
    }


FAMILY_KEYS = {
    "mixtral": experts,
    "qwen3_moe": experts,
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "gemma3_text": gemma3,
    "phi3": phi3,
    "granite": granite,
    "glm4": lambda config, older: {ROPE.DIMENSION_COUNT: int(config.head_dim * 0.5)},
}


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The row order that llama.cpp's converter gives q and k of llama models."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def converted(
    config: PretrainedConfig,
    arch: gguf.MODEL_ARCH,
    weights: dict[str, torch.Tensor],
    *,
    older: bool,
    order: bool,
) -> dict[str, torch.Tensor]:
    """Tensors under GGUF's names, from those under Hugging Face's."""
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    out: dict[str, torch.Tensor] = {}
    apart: dict[str, dict[int, torch.Tensor]] = {}

    def put(key: str, weight: torch.Tensor) -> None:
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None and stored not in out, key
        out[stored] = weight

    for key, weight in weights.items():
        expert = re.fullmatch(r"(model\.layers\.\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight", key)
        if expert:
            layer, number, matrix = expert.groups()
            matrix = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(matrix, matrix)
            apart.setdefault(f"{layer}.mlp.experts.{matrix}.weight", {})[int(number)] = weight
        elif key.endswith("kv_b_proj.weight") and not older:
            heads = weight.view(config.num_attention_heads, -1, weight.shape[-1])
            keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            put(key.replace("kv_b", "k_b"), keys.transpose(1, 2))
            put(key.replace("kv_b", "v_b"), values)
        elif key.endswith("e_score_correction_bias"):
            put(key.replace("_bias", ".bias"), weight)
        else:
            if order and arch in REORDERED and ("q_proj" in key or "k_proj" in key):
                queries = "q_proj" in key
                weight = interleave(weight, config.num_attention_heads if queries else config.num_key_value_heads)
            if order and config.model_type == "gemma3_text" and key.endswith("norm.weight"):
                weight = weight + 1
            put(key, weight)
    for key, parts in apart.items():
        if older and config.model_type == "mixtral":
            merged = names.get_name(key, try_suffixes=(".weight",))
            out |= {merged.replace("_exps", f".{number}"): weight for number, weight in parts.items()}
        else:
            put(key, torch.stack([parts[number] for number in range(len(parts))]))
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(config)
    if rope.get("rope_type") == "longrope":
        out["rope_factors_short.weight"] = torch.tensor(rope["short_factor"])
        out["rope_factors_long.weight"] = torch.tensor(rope["long_factor"])
    return out


def llama3_divisors(config: PretrainedConfig) -> torch.Tensor:
    """Llama 3.1's scaling as one divisor per frequency."""
    rope = config.rope_parameters
    dim = config.hidden_size // config.num_attention_heads
    divisors = []
    for index in range(0, dim, 2):
        turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** (-index / dim) / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(divisors)
