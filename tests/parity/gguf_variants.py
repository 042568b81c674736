"""Tiny models that a GGUF header can describe, where those of the other tests go further or not so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma3TextConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    SmolLM3Config,
)

from support import tiny

# GGUF names mscale_all_dim alone, which is DeepSeek's mscale as well.
YARN = tiny.YARN | {"mscale": 0.8}
MANY_EXPERTS = tiny.EXPERTS | dict(n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=8)
GEMMA = tiny.SHAPE | dict(pad_token_id=None, head_dim=16, sliding_window=9, query_pre_attn_scalar=16)

VARIANTS: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3-yarn": lambda: Qwen3Config(
        **tiny.SHAPE,
        head_dim=24,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "deepseek_v2-grouped": lambda: DeepseekV2Config(
        **tiny.LATENT,
        **tiny.EXPERTS,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        rope_parameters=YARN,
    ),
    "deepseek_v3-yarn": lambda: DeepseekV3Config(
        **tiny.LATENT, **tiny.EXPERTS, n_group=4, topk_group=2, rope_parameters=YARN
    ),
    "deepseek_v2-160": lambda: DeepseekV2Config(
        **tiny.LATENT,
        **(MANY_EXPERTS | {"n_routed_experts": 160}),
        n_group=8,
        topk_group=3,
        topk_method="group_limited_greedy",
    ),
    "deepseek_v3-256": lambda: DeepseekV3Config(**tiny.LATENT, **MANY_EXPERTS, n_group=8, topk_group=4),
    "deepseek_v3-raw": lambda: DeepseekV3Config(
        **tiny.LATENT, **tiny.EXPERTS, n_group=1, topk_group=1, norm_topk_prob=False
    ),
    "deepseek_v3-dense": lambda: DeepseekV3Config(**tiny.LATENT, **(tiny.EXPERTS | {"first_k_dense_replace": 3})),
    "gemma3-sixth": lambda: Gemma3TextConfig(**(GEMMA | {"num_hidden_layers": 7})),
    "gemma3-scaled-sixth": lambda: Gemma3TextConfig(
        **(GEMMA | {"num_hidden_layers": 6}),
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "gemma3-listed": lambda: Gemma3TextConfig(**GEMMA, layer_types=tiny.GEMMA_LAYERS),
    "gemma3-every-other": lambda: Gemma3TextConfig(**GEMMA, layer_types=tiny.GEMMA_LAYERS),
    "gemma3-27b": lambda: Gemma3TextConfig(
        **(GEMMA | {"num_hidden_layers": 62, "query_pre_attn_scalar": 8, "hidden_size": 48, "intermediate_size": 16})
    ),
    "phi3-full": lambda: Phi3Config(**tiny.SHAPE, pad_token_id=None, original_max_position_embeddings=512),
    "phi3-window": lambda: Phi3Config(
        **tiny.SHAPE, pad_token_id=None, sliding_window=11, original_max_position_embeddings=512
    ),
    "smollm3-fourth": lambda: SmolLM3Config(**(tiny.SHAPE | {"num_hidden_layers": 5}), pad_token_id=None),
}

# What the newest converter is shown to write.
NEWEST = (
    *("llama", "llama-bias", "llama3-rope", "llama-linear-rope", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-yarn"),
    *("qwen3_moe", "deepseek_v2-grouped", "deepseek_v2-lite", "deepseek_v3-yarn", "deepseek_v3-raw"),
    *("deepseek_v3-dense", "gemma3-sixth", "gemma3-scaled-sixth", "gemma3-27b", "phi3-full", "phi3-window"),
    *("phi3-longrope", "olmo2", "granite", "smollm3-fourth", "glm4"),
)


def save(name: str, folder: Path) -> Path:
    """The Hugging Face directory of a variant, or of a tiny model of the other tests, below `folder`."""
    with mock.patch.dict(tiny.CONFIGS, VARIANTS):
        return tiny.save(name, folder)
