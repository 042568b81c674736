"""Tiny models of the project's own architecture: mixtures of the decoder's options, with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.config import DeltaConfig, MLAConfig, ModelConfig, MoEConfig, RingConfig, RopeConfig
from deepseek_r1.models.decoder import Decoder

BASE = ModelConfig(
    family="deepseek_r1",
    vocab_size=320,
    hidden_size=48,
    intermediate_size=96,
    layers=4,
    heads=6,
    kv_heads=2,
    head_dim=16,
    max_position=512,
    norm_eps=1e-2,  # the gated norm divides by what may be nearly nothing; see test_slot_state
    ropes=(RopeConfig(10000.0, 16), RopeConfig(500.0, 8)),
    layer_ropes=(0, 1, None, 0),
    tie_embeddings=True,
    windows=(None, None, None, 20),
    qk_norm="head",
    norms="sandwich",
    activation="gelu_tanh",
    embedding_scale=3.0,
    logits_scale=1.5,
)
RING, DELTA = RingConfig(window=12, global_every=8), DeltaConfig(2, 4, 12, 10)

CONFIGS = {
    "attention": BASE,
    "ring": replace(BASE, mixers=("attention", "ring", "ring", "attention"), ring=RING),
    "delta": replace(BASE, mixers=("delta", "attention", "delta", "attention"), delta=DELTA),
    "all": replace(
        BASE,
        mixers=("delta", "ring", "attention", "attention"),
        ring=RING,
        delta=DELTA,
        moe=MoEConfig(6, 2, 40, 40, (False, True, True, True), score="sigmoid", bias=True),
    ),
    "latent-ring": replace(
        BASE,
        kv_heads=6,
        head_dim=20,
        qk_norm=None,
        windows=(None,) * 4,
        layer_ropes=(0,) * 4,
        ropes=(RopeConfig(10000.0, 8),),
        mla=MLAConfig(20, 24, 12, 8, 14, norm_eps=1e-2),
        mixers=("ring", "delta", "attention", "ring"),
        ring=RING,
        delta=DELTA,
    ),
}


def made(config: ModelConfig, seed: int = 0, precision: DeepSeekConfig | None = None) -> Decoder:
    decoder = Decoder(config, precision or DeepSeekConfig()).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in decoder.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.copy_(1 + 0.3 * noise)
        elif weight.dim() == 1:
            weight.copy_(0.5 * noise - (1.0 if "dt_bias" in name else 0.0))
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.2
            weight.copy_(gain * noise / weight.shape[-1] ** 0.5)
    return decoder
