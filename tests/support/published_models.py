"""Published models as their config.json describes them: only the fields that a decoder's shape is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

R1 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}

V2_LITE = {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 6,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def _dense(family: str, shape: tuple[int, ...], **extra: Any) -> dict[str, Any]:
    """A Llama-like config.json: vocabulary, hidden, intermediate, layers, heads, KV heads, context."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings")
    tied = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    return {"model_type": family} | dict(zip(names, shape, strict=True)) | tied | extra


LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "DeepSeek-R1": R1,
    "DeepSeek-V2-Lite": V2_LITE,
    "Llama-3.1-8B": _dense(
        "llama", (128256, 4096, 14336, 32, 32, 8, 131072), rope_theta=500000.0, rope_scaling=LLAMA_3_SCALING
    ),
    "Mistral-7B-v0.3": _dense("mistral", (32768, 4096, 14336, 32, 32, 8, 32768), sliding_window=None),
    "Mixtral-8x7B": _dense(
        "mixtral",
        (32000, 4096, 14336, 32, 32, 8, 32768),
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "Qwen2.5-7B": _dense("qwen2", (152064, 3584, 18944, 28, 28, 4, 32768), use_sliding_window=False),
    "Qwen3-30B-A3B": _dense(
        "qwen3_moe",
        (151936, 2048, 6144, 48, 32, 4, 40960),
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "gemma-3-1b": _dense(
        "gemma3_text",
        (262144, 1152, 6912, 26, 4, 1, 32768),
        head_dim=256,
        sliding_window=512,
        sliding_window_pattern=6,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256,
        rope_theta=1000000,
        rope_local_base_freq=10000,
        tie_word_embeddings=True,
    ),
    "Phi-4-mini": _dense(
        "phi3",
        (200064, 3072, 8192, 32, 24, 8, 131072),
        partial_rotary_factor=0.75,
        sliding_window=262144,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
        tie_word_embeddings=True,
    ),
    "SmolLM3-3B": _dense(
        "smollm3",
        (128256, 2048, 11008, 36, 16, 4, 65536),
        no_rope_layer_interval=4,
        use_sliding_window=False,
        tie_word_embeddings=True,
    ),
    "OLMo-2-7B": _dense("olmo2", (100352, 4096, 11008, 32, 32, 32, 4096)),
    "Granite-3.1-8B": _dense(
        "granite",
        (49155, 4096, 12800, 40, 32, 8, 131072),
        embedding_multiplier=12.0,
        attention_multiplier=0.0078125,
        residual_multiplier=0.22,
        logits_scaling=16.0,
        tie_word_embeddings=True,
    ),
}
"""Twelve models by name."""


def write_config(folder: Path, name: str) -> Path:
    """A folder below `folder` that holds this model's config.json and nothing else."""
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    return path
