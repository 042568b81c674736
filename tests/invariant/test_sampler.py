"""Sampling: the counter-based random number, the filters against transformers' own, ties, penalties, distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.engine.sampler import _filtered, sample, uniform
from deepseek_r1.engine.sequence import Sequence

VOCABULARY = 64


def sequence(params: SamplingParams, prompt: list[int] | None = None, choice: int = 0) -> Sequence:
    request = GenerateRequest("r", prompt or [1, 2, 3], params, choice)
    return Sequence(request, [b"x"] * VOCABULARY, frozenset(), b"", 16)


def philox(key: int, position: int, choice: int) -> int:
    """First word of Philox-4x64-10 (Salmon et al. 2011), written from the paper."""
    words, keys, mask = [position, choice, 0, 0], [key, 0], 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(second >> 64) ^ words[1] ^ keys[0], second & mask, (first >> 64) ^ words[3] ^ keys[1], first & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words[0]


def test_uniform_is_a_function_of_seed_choice_and_position() -> None:
    assert uniform(7, 1, 100) == uniform(7, 1, 100)
    values = {uniform(s, c, p) for s in range(5) for c in range(5) for p in range(40)}
    assert len(values) == 1000 and 0 <= min(values) and max(values) < 1
    assert uniform(-1, 0, 0) != uniform(1, 0, 0)
    # The numbers themselves are part of the promise: a resumed request must draw what it drew before.
    for seed, choice, position in ((0, 0, 0), (1234567890123, 3, 4096), (2**63 - 1, 127, 131071), (-5, 0, 1)):
        assert uniform(seed, choice, position) == (philox(seed % 2**64, position + 1, choice) >> 11) * 2.0**-53


def test_uniform_is_uniform() -> None:
    values = np.sort([uniform(seed, 0, position) for seed in range(40) for position in range(100)])
    distance = np.abs(values - np.linspace(0, 1, len(values))).max()
    assert distance < 1.63 / np.sqrt(len(values)), "Kolmogorov-Smirnov at the 1 % level"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.2, 2),
    top_k=st.integers(0, VOCABULARY),
    top_p=st.floats(0.05, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.5)),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    want = torch.softmax(warpers(None, logits[None]), -1)[0].numpy()
    params = SamplingParams(1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, chances = _filtered(logits / temperature, params)
    got = np.zeros(VOCABULARY)
    got[np.arange(VOCABULARY) if ids is None else ids] = chances / chances.sum()
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0] + [-50.0] * (VOCABULARY - 4))
    counts = np.zeros(4)
    for seed in range(4000):
        counts[sample(logits[None], [sequence(SamplingParams(1, seed=seed))])[0][0]] += 1
    want = torch.softmax(logits[:4], -1).numpy() * 4000
    assert ((counts - want) ** 2 / want).sum() < 16.27, "chi-squared, 3 degrees of freedom, 0.1 % level"


def test_ties_go_to_the_lower_id() -> None:
    logits = torch.zeros(1, 50_000)
    logits[0, [4, 7, 49_999]] = 5.0
    assert sample(logits, [sequence(SamplingParams(1, temperature=0))])[0][0] == 4
    ids, _ = _filtered(logits[0].double(), SamplingParams(1, top_k=2))
    assert ids is not None and ids.tolist() == [4, 7]
    _, logprobs = sample(logits, [sequence(SamplingParams(1, temperature=0, logprobs=5))])[0]
    assert logprobs is not None and logprobs.top_ids == [4, 7, 49_999, 0, 1]


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(0))
    kinds = [
        SamplingParams(1, temperature=0),
        SamplingParams(1, seed=3),
        SamplingParams(1, seed=4, top_p=0.7, logprobs=3),
    ]
    kinds += [SamplingParams(1, seed=5, top_k=9), SamplingParams(1, seed=6, repetition_penalty=1.5)]
    kinds += [SamplingParams(1, logit_bias={7: 50.0}), SamplingParams(1, seed=8, min_p=0.2, temperature=0.5)]
    kinds += [SamplingParams(1, seed=9, presence_penalty=1.0), SamplingParams(1, temperature=0, logprobs=0)]
    rows = [Sequence(GenerateRequest("r", [1, 2], k), [b"x"] * 500, frozenset(), b"", 16) for k in kinds]
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert together[5][0] == 7


def test_penalties_know_prompt_and_output() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    row = sequence(SamplingParams(9, temperature=0, repetition_penalty=1.7), [3, 4])
    row.append(5, None)
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 4, 5]]), logits.clone()).argmax()
    assert sample(logits, [row])[0][0] == int(want)
    # Presence and frequency count output alone: token 3 stands in the prompt, 5 twice in the output.
    for field, amount in (("presence_penalty", 1.0), ("frequency_penalty", 2.0)):
        row = sequence(SamplingParams(9, temperature=0, **{field: 1.0}), [3, 3])
        row.append(5, None)
        row.append(5, None)
        flat = torch.full((1, VOCABULARY), -9.0)
        flat[0, 5], flat[0, 3], flat[0, 6] = 1.0, 1.0 - amount + 0.01, 1.0 - amount - 0.01
        assert sample(flat, [row])[0][0] == 3
        flat[0, 3] = 1.0 - amount - 0.02
        assert sample(flat, [row])[0][0] == 5


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(2))
    params = SamplingParams(1, temperature=0.3, top_k=2, logit_bias={9: 100.0}, logprobs=4)
    token, logprobs = sample(logits, [sequence(params)])[0]
    want = torch.log_softmax(logits[0].double(), -1)
    assert token == 9 and logprobs is not None
    assert logprobs.logprob == pytest.approx(float(want[9]), abs=1e-9)
    top = want.topk(4)
    assert logprobs.top_ids == top.indices.tolist()
    np.testing.assert_allclose(logprobs.top_logprobs, top.values.numpy(), atol=1e-9)
