"""The project's own architecture: rings, gated-delta layers, latent attention and experts, in any mixture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_families import ids_of, packed_logits, paged_logits

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.shapes import parameter_shapes
from support.own_models import BASE, CONFIGS, RING, made


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    decoder = made(CONFIGS[request.param])
    return decoder, save_model(decoder, tmp_path_factory.mktemp("own") / request.param)


def test_shapes_are_the_decoder_s(pair: tuple[Decoder, Path]) -> None:
    decoder, _ = pair
    assert parameter_shapes(decoder.config) == {key: tuple(p.shape) for key, p in decoder.named_parameters()}


def test_round_trip(pair: tuple[Decoder, Path]) -> None:
    decoder, folder = pair
    again = load_decoder(folder, DeepSeekConfig(), pack=False)
    assert again.config == decoder.config
    for (name, one), (_, other) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    ids = ids_of(53)
    assert (packed_logits(again, ids) - packed_logits(decoder, ids)).abs().max() <= 1e-6


@torch.no_grad()
def test_paged_equals_packed(pair: tuple[Decoder, Path]) -> None:
    _, folder = pair
    decoder = load_decoder(folder, DeepSeekConfig(), pack=True)
    ids = ids_of(77)
    want = packed_logits(decoder, ids)
    assert want.std() >= 0.5
    for chunks in ([77], [1] * 77, [30, 1, 1, 5, 40]):
        cache = KVCache(decoder.layouts, 16, 16, slots=2, max_length=128)
        out, start = [], 0
        for count in chunks:
            paged = Paged(cache, [Span(start, count, [11, 3, 14, 0, 7], 1)])
            out.append(decoder.logits(decoder(ids[start : start + count], paged.positions, paged)))
            start += count
        assert (torch.cat(out) - want).abs().max() <= 1e-4


def test_a_ring_forgets() -> None:
    """The control: what a ring has given up no longer changes the answer, what it keeps does."""
    config = replace(BASE, layers=1, layer_ropes=(0,), windows=(None,), mixers=("ring",), ring=RING)
    decoder = made(config)
    ids = ids_of(60)
    want = packed_logits(decoder, ids)[-1]
    changes = []
    for place in (8, 9, 47, 48, 55):
        other = ids.clone()
        other[place] = (other[place] + 1) % 320
        changes.append(float((packed_logits(decoder, other)[-1] - want).abs().max()))
    kept = [change > 1e-3 for change in changes]
    assert kept == [True, False, False, True, True], "global tokens and the last 12 are seen"
    assert paged_logits(made(replace(config, mixers=("attention",))), ids, [60])[-1].sub(want).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mixers": ["ring", "ring", "ring"]}, "mixers"),
        ({"mixers": ["ring", "ring", "ring", "mamba"]}, "mamba"),
        ({"ring": None}, "ring"),
        ({"delta": None}, "delta"),
        ({"delta": {"key_heads": 3, "value_heads": 4, "key_dim": 8, "value_dim": 8}}, "value_heads"),
        ({"ring": {"window": 0}}, "window"),
        ({"ropes": []}, "ropes"),
        ({"ropes": [{"theta": 1e4, "dim": 64}]}, "ropes"),
        ({"ropes": [{"theta": 1e4, "dim": 7}]}, "dim"),
        ({"layer_ropes": [0, 1, 2, 0]}, "layer_ropes"),
        ({"layer_ropes": [True, 1, 0, 0]}, "layer_ropes"),
        ({"norms": "none"}, "norms"),
        ({"windows": [None, 5, None, None]}, "windows"),
        ({"moe": {"experts": 4, "active": 5, "hidden_size": 8}}, "active"),
        ({"heads": 10**9}, "heads"),
        ({"qk_norm": ["head"]}, "qk_norm"),
    ],
)
def test_lying_configurations_are_named(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    folder = save_model(made(CONFIGS["all"]), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=word):
        load_decoder(folder, DeepSeekConfig(), pack=False)
