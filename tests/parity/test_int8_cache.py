"""Keys and values in int8: the rows that the kernels write, what comes back, its gradient, and what it costs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_families import ids_of, packed_logits, paged_logits
from torch import Tensor

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.memory import kv_bytes_per_token
from deepseek_r1.kernels import native, ops
from deepseek_r1.layers.context import KVLayout
from deepseek_r1.models.block import kv_layout
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.formats import resolve
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import read_config
from support import own_models, tiny
from support.native_paths import PATHS, native_path

LAYOUTS = (
    KVLayout(3, 20, 12, torch.int8),
    KVLayout(1, 9, 5, torch.int8),  # padded before the scales
    KVLayout(1, 24, 16, torch.int8, shared=True),
)


def keys_and_values(layout: KVLayout, tokens: int) -> tuple[Tensor, Tensor | None]:
    rng = torch.Generator().manual_seed(tokens)
    k = torch.randn(tokens, layout.kv_heads, layout.key_dim, generator=rng) * 10 ** torch.randn(
        tokens, 1, 1, generator=rng
    )
    v = None if layout.shared else torch.randn(tokens, layout.kv_heads, layout.value_dim, generator=rng)
    return k, v


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_rows_are_the_kernels(path: str, layout: KVLayout) -> None:
    k, v = keys_and_values(layout, 9)
    k[1], k[2, 0, 3], k[3, 0, 0] = 0.0, math.inf, math.nan
    k[4] = 127.5 / 127 * torch.arange(layout.key_dim) / layout.key_dim  # halves, which are rounded to even
    with native_path(path):
        known = native.row_layout(torch.int8, layout.kv_heads, layout.key_dim, layout.value_dim, layout.shared)
        assert known.nbytes == layout.width == layout.bytes_per_token
        pool = torch.zeros(9, 1, layout.width, dtype=torch.int8)
        native.kv_write(pool, known, torch.arange(9), k, v)
    rows = layout.rows(k, v)
    padding = slice(layout._codes, -4 * layout._scales)
    pool[..., padding] = 0
    assert torch.equal(rows, pool.squeeze(1))
    found = layout.split(rows.unsqueeze(0))
    for part, want in zip(found, layout.rounded(k, v), strict=True):
        torch.testing.assert_close(part.squeeze(0).transpose(0, 1), want, rtol=0, atol=0, equal_nan=True)
    assert bool(found[0][0, 0, 2].isnan().all()), "what holds an infinity reads back as NaN"


def test_rounding_lets_gradients_through() -> None:
    x = torch.randn(4, 2, 8, requires_grad=True)
    rounded = ops.int8_rounded(x)
    step = x.detach().abs().amax(-1, keepdim=True) / 127
    assert bool(((rounded - x).detach().abs() <= step * 0.501).all()) and bool((rounded != x).any())
    (gradient,) = torch.autograd.grad((rounded * torch.arange(8.0)).sum(), x)
    assert torch.equal(gradient, torch.arange(8.0).expand(4, 2, 8))


INT8 = parse_precision("fp32:kv_cache=int8")


def models(name: str, folder: Path) -> tuple[Decoder, Decoder]:
    """The model with fp32 keys and values, and with int8 ones."""
    if name in own_models.CONFIGS:
        config = own_models.CONFIGS[name]
        return own_models.made(config), own_models.made(config, precision=INT8)
    path = tiny.save(name, folder)
    return load_decoder(path, DeepSeekConfig(), pack=True), load_decoder(path, INT8, pack=True)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "deepseek_v3", "ring", "latent-ring"])
def test_paged_is_packed_and_near_the_exact_model(name: str, models_folder: Path) -> None:
    exact, decoder = models(name, models_folder)
    ids = ids_of(70)
    packed = packed_logits(decoder, ids)
    assert {layout.dtype for layout in decoder.layouts if isinstance(layout, KVLayout)} == {torch.int8}
    for chunks in ([70], [64, 5, 1], [1] * 70):
        found = paged_logits(decoder, ids, chunks)
        # By torch's formulae a key's last bit can be another, and then its code.
        torch.testing.assert_close(found, packed, rtol=0, atol=2e-5 if name in tiny.FAMILIES else 2e-2)
    error = (packed - packed_logits(exact, ids)).norm() / packed.norm()
    assert 1e-5 < error < (0.08 if name in ("deepseek_v3", "latent-ring") else 0.02)  # a latent has one scale


def test_the_kernels_do_what_the_formulae_do(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_decoder(tiny.save("llama", models_folder), INT8, pack=False).requires_grad_(False)
    ids = ids_of(40)
    found = packed_logits(decoder, ids)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "NATIVE", False)
        for want in (packed_logits(decoder, ids), paged_logits(decoder, ids, [33, 7])):
            assert (found - want).norm() / want.norm() < 2e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_it_takes(family: str, models_folder: Path) -> None:
    path = tiny.save(family, models_folder)
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
    taken = {}
    for name in ("fp32", "bf16", "int8"):
        precision = parse_precision(f"fp32:kv_cache={name}")
        layout = kv_layout(config, precision, 0)
        layers = sum(config.mixer(layer) == "attention" for layer in range(config.layers + config.mtp_layers))
        taken[name] = kv_bytes_per_token(config, precision)
        assert taken[name] == layers * layout.bytes_per_token
    assert taken["fp32"] == 2 * taken["bf16"] and (taken["int8"] < 0.8 * taken["bf16"] or not taken["fp32"])


def test_a_mode_with_exceptions(models_folder: Path) -> None:
    precision = parse_precision("int4:kv_cache=int8")
    usual = parse_precision("int4")
    assert precision.dtype_of("kv_cache") == "int8" and parse_precision(precision.name) == precision
    for name in ("embedding", "linear", "norm", "rope", "attention", "activation", "lm_head"):
        assert precision.dtype_of(name) == usual.dtype_of(name)
    automatic = parse_precision("auto:kv_cache=int8")
    assert automatic.name == "auto:kv_cache=int8"
    with open_checkpoint(tiny.save("llama", models_folder)) as checkpoint:
        assert resolve(automatic, checkpoint, bf16=True) == parse_precision("bf16:kv_cache=int8")
    assert DeepSeekConfig("int8", int8_ops=("linear",), bf16_ops=("kv_cache",)).name == "int8", "no exceptions"


def test_a_block_of_an_engine_takes_less(models_folder: Path) -> None:
    path = tiny.save("llama", models_folder)
    usual, small = (
        load_engine(path, precision=precision, memory_bytes=1 << 29) for precision in ("bf16", "bf16:kv_cache=int8")
    )
    assert small.precision == "bf16:kv_cache=int8"
    taken, less = (engine.runner.cache.nbytes / engine.stats.kv_blocks_total for engine in (usual, small))
    assert 0.5 < less / taken < 0.8
