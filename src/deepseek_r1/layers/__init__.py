"""Layers of the decoder: linear, norm, rope, MLP, experts, attention and the contexts attention runs in."""

from deepseek_r1.layers.attention import Attention
from deepseek_r1.layers.context import AttentionContext, KVLayout, Packed, StateLayout
from deepseek_r1.layers.gated_delta import GatedDelta
from deepseek_r1.layers.latent import HeadLinear, LatentAttention
from deepseek_r1.layers.linear import Linear, LinearGroup
from deepseek_r1.layers.mlp import GatedMLP
from deepseek_r1.layers.moe import Experts, MoE, Router
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.rope import RotaryEmbedding

__all__ = [
    "Attention",
    "AttentionContext",
    "Experts",
    "GatedDelta",
    "GatedMLP",
    "HeadLinear",
    "KVLayout",
    "LatentAttention",
    "Linear",
    "LinearGroup",
    "MoE",
    "Packed",
    "RMSNorm",
    "RotaryEmbedding",
    "Router",
    "StateLayout",
]
