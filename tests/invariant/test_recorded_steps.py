"""Decode steps of models with experts and latents: recorded whole, and a replay is the eager step bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.engine.recorded import RecordedSteps
from deepseek_r1.kernels.recording import Arena
from deepseek_r1.models.loading import load_decoder
from support import tiny
from support.native_paths import bits

FAMILIES = ("deepseek_v3", "deepseek_v3-plain", "deepseek_v2", "deepseek_v2-lite", "mixtral", "qwen3_moe")


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_step_is_the_eager_one(family: str, precision: str, models_folder: Path) -> None:
    """Four sequences, one to four of them in turn: every recording is replayed with other tokens and experts."""
    decoder = load_decoder(tiny.save(family, models_folder), parse_precision(precision), pack=True)
    cache, eager_cache = (KVCache(decoder.layouts, 40, 4) for _ in range(2))
    steps = RecordedSteps(decoder, cache, Arena())
    rng = random.Random(5)
    lengths = [0, 0, 0, 0]
    used: set[bytes] = set()
    for turn in range(16):
        who = range(1 + turn % 4)
        ids = [rng.randrange(8, decoder.config.vocab_size) for _ in who]
        spans = [Span(lengths[i], 1, list(range(10 * i, 10 * i + 10))) for i in who]
        counters = {layer: counts.clone() for layer, counts in decoder.expert_tokens().items()}
        hidden, logits = (t.clone() for t in steps.run(ids, spans))
        assert steps.unable is None
        counted = {layer: counts - counters[layer] for layer, counts in decoder.expert_tokens().items()}
        paged = Paged(eager_cache, spans)
        want = decoder(torch.tensor(ids), paged.positions, paged)
        assert torch.equal(bits(hidden), bits(want)) and torch.equal(bits(logits), bits(decoder.logits(want)))
        for layer, counts in decoder.expert_tokens().items():
            assert torch.equal(counts - counters[layer], 2 * counted[layer])
            assert int(counted[layer].sum()) == len(ids) * decoder.config.moe.active
            used.add(counted[layer].numpy().tobytes())
        for i in who:
            lengths[i] += 1
    for index, pool in cache.pools.items():
        assert torch.equal(bits(pool), bits(eager_cache.pools[index]))
    assert len(used) > 10, "the routing changes from step to step"
