"""Window and global tokens equal a dense masked softmax in float64, packed and in rings, and save the memory said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.engine import paged as paged_module
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.layers.context import KVLayout, Packed

TOLERANCE = 1e-5
HEADS, KV_HEADS, DIM = 6, 2, 16
SCALE = DIM**-0.5
SLOTS = 5

FULL = KVLayout(KV_HEADS, DIM, DIM, torch.float32)
LAYOUTS = {
    "globals": replace(FULL, window=8, global_every=5),
    "globals-inside": replace(FULL, window=16, global_every=3),
    "window-only": replace(FULL, window=7),
    "window-of-one": replace(FULL, window=1, global_every=4),
    "all-global": replace(FULL, window=4, global_every=1),
    "latent": KVLayout(1, 24, DIM, torch.float32, shared=True, window=8, global_every=5),
}

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def inputs_of(layout: KVLayout, length: int, seed: int = 0) -> Inputs:
    """q, k and v at which attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    q = 1.7 * torch.randn(length, HEADS, layout.key_dim, generator=generator)
    k = 1.7 * torch.randn(length, layout.kv_heads, layout.key_dim, generator=generator)
    if layout.shared:
        return q, k, None
    return q, k, torch.randn(length, layout.kv_heads, layout.value_dim, generator=generator)


def dense(layout: KVLayout, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, scale: float) -> torch.Tensor:
    """The definition: every score, the rule spelled out per pair, a softmax; in float64."""
    length = len(q)
    window, every = layout.window or length, layout.global_every
    rule = [
        [j <= i and (i - j < window or (every is not None and j % every == 0)) for j in range(length)]
        for i in range(length)
    ]
    k = k.double()
    v = k[..., : layout.value_dim] if v is None else v.double()
    group = HEADS // layout.kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q.double(), k) * scale
    weights = scores.masked_fill(~torch.tensor(rule), -torch.inf).softmax(-1)
    if length > 100:
        assert weights[:, 30:].max(-1).values.mean() > 0.4, "attention is nearly uniform: nothing would show"
    return torch.einsum("hij,jhd->ihd", weights, v)


def packed(layout: KVLayout, parts: list[Inputs], window: int | None = None) -> torch.Tensor:
    q, k, v = (None if x[0] is None else torch.cat(x) for x in zip(*parts, strict=True))
    return Packed([len(part[0]) for part in parts]).attend(0, q, k, v, layout, SCALE, window)


def run_paged(layout: KVLayout, parts: list[Inputs], steps: list[list[tuple[int, int]]]) -> list[torch.Tensor]:
    """The sequences' results; a step names the sequences that take part and their token counts. Rings start as NaN."""
    longest = max(len(part[0]) for part in parts)
    cache = KVCache([layout], 1, 16, slots=SLOTS, max_length=longest)
    cache.pools[0].fill_(torch.nan)
    done = [0] * len(parts)
    out: list[list[torch.Tensor]] = [[] for _ in parts]
    for step in steps:
        step = sorted(step, key=lambda item: item[1] > 1)
        spans = [Span(done[i], count, [], (3 * i + 1) % SLOTS) for i, count in step]
        flat = [
            [None if x is None else x[span.start : span.length] for x in parts[i]]
            for (i, _), span in zip(step, spans, strict=True)
        ]
        q, k, v = (None if x[0] is None else torch.cat(x) for x in zip(*flat, strict=True))
        vectors = Paged(cache, spans).attend(0, q, k, v, layout, SCALE)
        for (i, count), part in zip(step, vectors.split([count for _, count in step]), strict=True):
            out[i].append(part)
            done[i] += count
    assert done == [len(part[0]) for part in parts]
    return [torch.cat(pieces) for pieces in out]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> KVLayout:
    return LAYOUTS[request.param]


def test_packed_equals_the_dense_formula(layout: KVLayout) -> None:
    parts = [inputs_of(layout, length, seed) for seed, length in enumerate((1, 7, 8, 9, 40, 101))]
    got = packed(layout, parts).split([len(part[0]) for part in parts])
    for part, out in zip(parts, got, strict=True):
        assert (out - dense(layout, *part, SCALE)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("length", [1, 5, 8, 33, 101])
def test_rings_equal_the_dense_formula_however_chunked(layout: KVLayout, length: int) -> None:
    part = inputs_of(layout, length)
    want = dense(layout, *part, SCALE)
    plans = {
        "whole": [length],
        "tokens": [1] * length,
        "short chunks": [3] * (length // 3) + [1] * (length % 3),
        "window and more": [8, 20, 1, 1, length - 30] if length > 30 else [length],
    }
    for name, counts in plans.items():
        (got,) = run_paged(layout, [part], [[(0, count)] for count in counts])
        assert (got - want).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("gather", [20, 8192], ids=["small batches", "one batch"])
def test_random_batches_equal_each_alone(layout: KVLayout, gather: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to five sequences in slots out of order; in a step each takes part with a chunk, one token, or not at all."""
    monkeypatch.setattr(paged_module, "GATHER_TOKENS", gather)
    batched = 0

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        nonlocal batched
        rng = random.Random(seed)
        parts = [inputs_of(layout, rng.randint(1, 60), rng.randrange(1000)) for _ in range(rng.randint(2, SLOTS))]
        left = [len(part[0]) for part in parts]
        steps = []
        while any(left):
            step = [
                (i, min(n, rng.choice([1, 1, 1, 2, 9, 30]))) for i, n in enumerate(left) if n and rng.random() < 0.8
            ]
            for i, count in step:
                left[i] -= count
            if step:
                steps.append(step)
            batched += sum(count == 1 for _, count in step) > 1
        for part, got in zip(parts, run_paged(layout, parts, steps), strict=True):
            assert (got - dense(layout, *part, SCALE)).abs().max() <= TOLERANCE

    check()
    assert batched > 20


def test_rows_are_rounded_alike_in_rings_and_packed() -> None:
    layout = replace(LAYOUTS["globals"], dtype=torch.bfloat16)
    q, k, v = inputs_of(layout, 50)
    (got,) = run_paged(layout, [(q, k, v)], [[(0, 20)], [(0, 29)], [(0, 1)]])
    want = dense(layout, q, k.bfloat16(), v.bfloat16(), SCALE)
    assert (got - want).abs().max() <= TOLERANCE
    assert (packed(layout, [(q, k, v)]) - want).abs().max() <= TOLERANCE
    assert (dense(layout, q, k, v, SCALE) - want).abs().max() > 100 * TOLERANCE


def test_controls_fail() -> None:
    """Without globals, or with a window off by one, the same comparison is far outside the tolerance."""
    layout = LAYOUTS["globals"]
    part = inputs_of(layout, 60)
    want = dense(layout, *part, SCALE)
    wrong = {
        "no globals": replace(layout, global_every=None),
        "globals off by one": replace(layout, global_every=6),
        "a key too many": replace(layout, window=9),
        "a key too few": replace(layout, window=7),
        "full": FULL,
    }
    for name, other in wrong.items():
        assert (packed(other, [part]) - want).abs().max() > 1e-2, name
        if other.window is not None:
            (got,) = run_paged(other, [part], [[(0, 20)], *[[(0, 1)]] * 40])
            assert (got - want).abs().max() > 1e-2, name


def test_gradients_equal_those_of_the_dense_formula(layout: KVLayout) -> None:
    parts = [inputs_of(layout, length, seed) for seed, length in enumerate((35, 12))]
    leaves = [x.requires_grad_() for part in parts for x in part if x is not None]
    probe = torch.randn(47, HEADS, layout.value_dim, generator=torch.Generator().manual_seed(9))
    got = torch.autograd.grad((packed(layout, parts) * probe).sum(), leaves)
    formula = torch.cat([dense(layout, *part, SCALE) for part in parts])
    want = torch.autograd.grad((formula * probe).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_memory_at_32k_tokens() -> None:
    """What one sequence of 32,768 tokens takes, by the tensors allocated: at most 58 % of a full layout's."""
    tokens, block = 32_768, 16
    full = KVLayout(8, 64, 64, torch.bfloat16)
    ring = replace(full, window=512, global_every=64)

    def taken(layouts: list[KVLayout]) -> int:
        return KVCache(layouts, tokens // block, block, slots=1, max_length=tokens).nbytes

    whole = taken([full] * 24)
    assert whole == 24 * tokens * full.bytes_per_token
    assert taken([ring] * 24) == 24 * (512 + 512) * full.bytes_per_token
    assert taken([ring] * 24) / whole == 1 / 32
    assert taken([full, ring] * 12) / whole <= 0.58, "every second layer a ring"
    assert taken([*[ring] * 3, full] * 6) / whole <= 0.28, "three of four layers rings"


def test_what_a_ring_refuses() -> None:
    layout = LAYOUTS["globals"]
    part = inputs_of(layout, 9)
    with pytest.raises(ValueError, match="window of its layout"):
        packed(layout, [part], window=4)
    with pytest.raises(ValueError, match="window of its layout"):
        Paged(KVCache([layout], 1, 16), [Span(0, 9, [0])]).attend(0, *part, layout, SCALE, 4)
    with pytest.raises(ValueError, match="go with a window"):
        replace(FULL, global_every=64)
    for sizes in ({"window": 0}, {"window": 8, "global_every": 0}, {"window": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            replace(FULL, **sizes)
    with pytest.raises(ValueError, match="only a layout with a window"):
        FULL.ring_rows(10)
