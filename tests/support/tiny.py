"""Tiny models with random weights, at a scale where a wrong formula shows, written as Hugging Face directories."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma3TextConfig,
    Glm4Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder

SHAPE = dict(
    vocab_size=320,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=512,
    attn_implementation="eager",
)

QWEN_EXPERTS = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=40)

EXPERTS = dict(
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=2,
    moe_intermediate_size=40,
    first_k_dense_replace=1,
    routed_scaling_factor=1.5,
)

LATENT = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"} | dict(
    num_key_value_heads=6, q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=14
)

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}

GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-bias": lambda: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-linear-rope": lambda: LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
    ),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None, head_dim=16),
    "mistral-window": lambda: MistralConfig(**SHAPE, sliding_window=9),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-window": lambda: Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=24),
    "mixtral": lambda: MixtralConfig(**SHAPE, num_local_experts=6, num_experts_per_tok=2, sliding_window=None),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SHAPE, head_dim=24, **QWEN_EXPERTS, norm_topk_prob=True),
    "qwen3_moe-raw": lambda: Qwen3MoeConfig(**SHAPE, head_dim=16, **QWEN_EXPERTS, mlp_only_layers=[1]),
    "deepseek_v2": lambda: DeepseekV2Config(
        **LATENT, **EXPERTS, n_group=4, topk_group=2, topk_method="group_limited_greedy", rope_parameters=YARN
    ),
    "deepseek_v2-lite": lambda: DeepseekV2Config(
        **(LATENT | {"q_lora_rank": None}), **EXPERTS, topk_method="greedy", rms_norm_eps=1e-3
    ),
    "deepseek_v3": lambda: DeepseekV3Config(**LATENT, **EXPERTS, n_group=4, topk_group=2, rope_parameters=YARN),
    "deepseek_v3-plain": lambda: DeepseekV3Config(
        **LATENT, **EXPERTS, n_group=1, topk_group=1, norm_topk_prob=False, attention_bias=True, rms_norm_eps=1e-3
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE, pad_token_id=None, head_dim=16, sliding_window=9, query_pre_attn_scalar=24, layer_types=GEMMA_LAYERS
    ),
    "gemma3-scaled": lambda: Gemma3TextConfig(
        **SHAPE,
        pad_token_id=None,
        head_dim=16,
        sliding_window=20,
        layer_types=GEMMA_LAYERS,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "phi3": lambda: Phi3Config(**SHAPE, pad_token_id=None, sliding_window=11),
    "phi3-longrope": lambda: Phi3Config(
        **SHAPE,
        pad_token_id=None,
        original_max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.7],
            "long_factor": [4.0, 9.0],
        },
    ),
    "olmo2": lambda: Olmo2Config(**SHAPE, pad_token_id=None),
    "granite": lambda: GraniteConfig(
        **SHAPE,
        embedding_multiplier=5.0,
        attention_multiplier=0.3,
        residual_multiplier=0.6,
        logits_scaling=0.7,
        tie_word_embeddings=True,
    ),
    "smollm3": lambda: SmolLM3Config(**SHAPE, pad_token_id=None, no_rope_layer_interval=2),
    "glm4": lambda: Glm4Config(**SHAPE, head_dim=16, pad_token_id=None),
}

FAMILIES = tuple(CONFIGS)


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A transformers model whose logits spread and whose attention is far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                centre = 0 if "gemma3" in name else 1  # Gemma stores the difference from one
                weight.copy_(centre + 0.3 * torch.randn_like(weight))
            elif weight.dim() == 1:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                gain = 1.6 if ("q_proj" in key or "k_proj" in key) else 1.2
                weight.copy_(gain * torch.randn_like(weight) / weight.shape[-1] ** 0.5)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    return model


def with_prediction_module(path: Path, seed: int = 0) -> Decoder:
    """The model at `path` (DeepSeek-V3) with a prediction module of random weights behind it."""
    plain = load_decoder(path, DeepSeekConfig(), pack=False)
    decoder = Decoder(replace(plain.config, mtp_layers=1), DeepSeekConfig()).requires_grad_(False).eval()
    decoder.load_state_dict(plain.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(seed)
    for weight in decoder.mtp.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else 1.2 * noise / weight.shape[-1] ** 0.5)
    return decoder


@cache
def _saved(name: str, seed: int, folder: str) -> Path:
    path = Path(folder) / f"{name}-{seed}"
    build(name, seed).save_pretrained(path)
    return path


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """The directory of this tiny model below `folder`, written once."""
    return _saved(name, seed, str(folder))
