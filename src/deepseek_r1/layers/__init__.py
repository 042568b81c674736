"""Layers of the decoder: linear, norm, rope, MLP, attention and the contexts attention runs in."""

from deepseek_r1.layers.attention import Attention
from deepseek_r1.layers.context import AttentionContext, KVLayout, Packed
from deepseek_r1.layers.linear import Linear, LinearGroup
from deepseek_r1.layers.mlp import GatedMLP
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.rope import RotaryEmbedding

__all__ = [
    "Attention",
    "AttentionContext",
    "GatedMLP",
    "KVLayout",
    "Linear",
    "LinearGroup",
    "Packed",
    "RMSNorm",
    "RotaryEmbedding",
]
