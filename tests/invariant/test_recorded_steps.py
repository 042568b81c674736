"""Decode steps of models with experts and latents: recorded whole, and a replay is the eager step bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.engine.recorded import RecordedSteps
from deepseek_r1.kernels.recording import Arena, empty, using
from deepseek_r1.models.loading import load_decoder
from support import tiny
from support.native_paths import bits

FIRST_ANSWER = """
import sys
from pathlib import Path
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
engine = load_engine(Path(sys.argv[1]), memory_bytes=1 << 30)
engine.submit(GenerateRequest("first", [9], SamplingParams(max_tokens=3)))
while engine.has_work:
    engine.step()
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
"""

FAMILIES = ("deepseek_v3", "deepseek_v3-plain", "deepseek_v2", "deepseek_v2-lite", "mixtral", "qwen3_moe")


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4", "fp32:kv_cache=int8"])
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


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_replayed_full_step_is_the_eager_one(precision: str, models_folder: Path) -> None:
    """Two prompts in pieces of 96 tokens, shared out in other ways each time, with a sequence that decodes beside."""
    decoder = load_decoder(tiny.save("llama", models_folder), parse_precision(precision), pack=True)
    cache, eager_cache = (KVCache(decoder.layouts, 90, 4) for _ in range(2))
    steps = RecordedSteps(decoder, cache, Arena(), full=(96,))
    rng = random.Random(7)
    lengths = [0, 0]
    for first in (96, 95, 40, 1, 60):
        counts = [first, 96 - first]
        ids = [rng.randrange(8, decoder.config.vocab_size) for _ in range(96)]
        spans = [Span(lengths[i], n, list(range(45 * i, 45 * i + 45))) for i, n in enumerate(counts) if n]
        (hidden,) = steps.run(ids, spans, logits=False)
        hidden = hidden.clone()
        assert steps.unable is None
        paged = Paged(eager_cache, spans)
        assert torch.equal(bits(hidden), bits(decoder(torch.tensor(ids), paged.positions, paged)))
        lengths = [length + n for length, n in zip(lengths, counts, strict=True)]
        if max(lengths) > 80:
            lengths = [0, 0]


def test_threads_record_and_borrow_apart() -> None:
    """An arena that one thread is lent is not another's."""
    mine, found = Arena(), []
    with using(mine):
        thread = threading.Thread(target=lambda: found.append(mine.holds(empty((10,), torch.float32))))
        thread.start()
        thread.join()
        assert mine.holds(empty((10,), torch.float32))
    assert found == [False]


def test_a_first_answer_does_not_wait_for_a_compiler(models_folder: Path) -> None:
    """Watching a recording's operators had torch import its compiler: a second, at the first request."""
    done = subprocess.run([sys.executable, "-c", FIRST_ANSWER, str(tiny.save("llama", models_folder))])
    assert done.returncode == 0
