"""Tiny models with random weights, at a scale where a wrong formula shows, written as Hugging Face directories."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

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
}

FAMILIES = tuple(CONFIGS)


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A transformers model whose logits spread and whose attention is far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif weight.dim() == 1:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                gain = 1.6 if ("q_proj" in key or "k_proj" in key) else 1.2
                weight.copy_(gain * torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    return model


@cache
def _saved(name: str, seed: int, folder: str) -> Path:
    path = Path(folder) / f"{name}-{seed}"
    build(name, seed).save_pretrained(path)
    return path


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """The directory of this tiny model below `folder`, written once."""
    return _saved(name, seed, str(folder))
