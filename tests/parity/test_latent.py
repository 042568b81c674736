"""Latent attention: the absorbed form is the naive one, and the latent is all that is cached, at R1's own shape."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.layers import KVLayout, LatentAttention, Packed, RotaryEmbedding
from deepseek_r1.models.families.forms import LATENT_UP

HEADS, Q_RANK, KV_RANK, NOPE, ROPE, VALUE, DIM = 4, 40, 32, 24, 16, 28, 64

# DeepSeek-R1's own shape, from its config.json.
R1 = {"layers": 61, "heads": 128, "kv_rank": 512, "nope": 128, "rope": 64, "value": 128}


def layer(layout: KVLayout) -> LatentAttention:
    f32 = torch.float32
    module = LatentAttention(
        0,
        dim=DIM,
        heads=HEADS,
        q_rank=Q_RANK,
        kv_rank=KV_RANK,
        nope_dim=NOPE,
        rope_dim=ROPE,
        value_dim=VALUE,
        layout=layout,
        qkv_bias=False,
        output_bias=False,
        norm_eps=1e-6,
        scale=(NOPE + ROPE) ** -0.5,
        linear_dtype=f32,
        norm_dtype=f32,
        compute_dtype=f32,
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else 1.6 * noise / weight.shape[-1] ** 0.5)
    return module


def naive(module: LatentAttention, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The definition, in float64: keys and values of every head expanded from the latent."""

    def rms(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.double() * value * (value.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    def rotate(value: torch.Tensor) -> torch.Tensor:
        first, second = value.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    x, length = x.double(), len(x)
    weights = {name: weight.detach().double() for name, weight in module.named_parameters()}
    q = rms(x @ weights["q_a_proj.weight"].T, weights["q_a_norm.weight"]) @ weights["q_b_proj.weight"].T
    q_nope, q_rope = q.view(length, HEADS, NOPE + ROPE).split((NOPE, ROPE), -1)
    latent, k_rope = (x @ weights["kv_a_proj.weight"].T).split((KV_RANK, ROPE), -1)
    latent = rms(latent, weights["kv_a_norm.weight"])
    out = []
    for head in range(HEADS):
        keys = torch.cat((latent @ weights["k_up.weight"][head], rotate(k_rope)), -1)
        values = latent @ weights["v_up.weight"][head].T
        scores = torch.cat((q_nope[:, head], rotate(q_rope[:, head])), -1) @ keys.T * (NOPE + ROPE) ** -0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        out.append(scores.softmax(-1) @ values)
    return torch.cat(out, -1) @ weights["o_proj.weight"].T


@torch.no_grad()
def test_absorbed_equals_naive() -> None:
    layout = KVLayout(1, KV_RANK + ROPE, KV_RANK, torch.float32, shared=True)
    module = layer(layout)
    x = torch.randn(45, DIM, generator=torch.Generator().manual_seed(1))
    rotary = RotaryEmbedding(ROPE, 10000.0)(torch.arange(45))
    angles = torch.arange(45).double()[:, None] / 10000.0 ** (torch.arange(0, ROPE, 2).double() / ROPE)
    want = naive(module, x, angles.cos(), angles.sin())
    assert want.std() > 0.5
    assert (module(x, rotary, Packed([45])) - want).abs().max() <= 1e-4
    assert (module(x, rotary, Packed([45])) - naive(module, x, angles.cos(), -angles.sin())).abs().max() > 1e-2
    cache = KVCache([layout], 4, 16)
    paged = Paged(cache, [Span(0, 45, [2, 0, 3])])
    assert (module(x, rotary, paged) - want).abs().max() <= 1e-4
    # What was cached is the latent and one rotated key, and nothing else.
    assert cache.pools[0].shape == (4, 16, KV_RANK + ROPE)


@torch.no_grad()
def test_absorbed_equals_transformers_attention() -> None:
    config = DeepseekV3Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=Q_RANK,
        kv_lora_rank=KV_RANK,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=VALUE,
        rope_interleave=False,
        attn_implementation="eager",
    )
    module = layer(KVLayout(1, KV_RANK + ROPE, KV_RANK, torch.float32, shared=True))
    theirs = DeepseekV3Attention(config, 0).eval()
    ours = dict(module.named_parameters())
    up = LATENT_UP.join([ours.pop("k_up.weight"), ours.pop("v_up.weight")], None)  # type: ignore[arg-type]
    names = {"kv_a_proj": "kv_a_proj_with_mqa", "q_a_norm": "q_a_layernorm", "kv_a_norm": "kv_a_layernorm"}
    state = {".".join((names.get(key.split(".")[0], key.split(".")[0]), "weight")): ours[key] for key in ours}
    theirs.load_state_dict(state | {"kv_b_proj.weight": up})
    x = torch.randn(1, 33, DIM, generator=torch.Generator().manual_seed(2))
    table = DeepseekV3RotaryEmbedding(config)(x, torch.arange(33)[None])
    mask = torch.full((33, 33), -torch.inf).triu(1)[None, None]
    want = theirs(x, table, mask)[0][0]
    got = module(x[0], RotaryEmbedding(ROPE, 10000.0)(torch.arange(33)), Packed([33]))
    assert want.std() > 0.5 and (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_bytes_per_token_at_the_shape_of_r1(dtype: torch.dtype) -> None:
    """On paper: 61 x (512 + 64) elements, against 61 x 128 x (128 + 64 + 128) expanded. By allocation: the same."""
    latent = KVLayout(1, R1["kv_rank"] + R1["rope"], R1["kv_rank"], dtype, shared=True)
    expanded = KVLayout(R1["heads"], R1["nope"] + R1["rope"], R1["value"], dtype)
    size = dtype.itemsize
    assert latent.bytes_per_token * R1["layers"] == 35_136 * size
    assert expanded.bytes_per_token * R1["layers"] == 2_498_560 * size
    tokens = 4 * 16
    cache = KVCache([latent] * R1["layers"], 4, 16)
    assert cache.nbytes == tokens * 35_136 * size
    assert 71 < expanded.bytes_per_token / latent.bytes_per_token < 72
