"""Batch of 1 = of N, chunked = whole, prefix hit = miss, preempted = not, resumed = uninterrupted, Packed = Paged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import TOLERANCE, Outcome, alone, make_engine, run_schedule

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.block_pool import block_hash
from deepseek_r1.engine.request import GenerateRequest, SamplingParams, ThinkFormat
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from support import tiny

GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def decoders(models_folder: Path) -> dict[str, Decoder]:
    return {
        name: load_decoder(tiny.save(name, models_folder), DeepSeekConfig(), pack=True)
        for name in ("llama", "mistral-window", "qwen3", "deepseek_v3")
    }


def test_random_schedules(decoders: dict[str, Decoder]) -> None:
    seen: list[Outcome] = []

    @settings(max_examples=45, deadline=None, derandomize=True)  # `make prove` draws many more
    @given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(decoders)))
    def check(seed: int, name: str) -> None:
        outcome = run_schedule(decoders[name], seed)
        seen.append(outcome)
        assert not outcome.problems, outcome.problems

    check()
    # The schedules are worth something only if they did what they are there for.
    assert sum(o.preemptions for o in seen) > 10
    assert sum(o.hits for o in seen) > 100
    assert sum(o.tokens for o in seen) > 500
    assert sum(len(o.ties) for o in seen) <= len(seen) // 10


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "int4:kv_cache=int8"])
def test_random_schedules_at_other_precisions(precision: str, models_folder: Path) -> None:
    names = ("llama", "qwen3", "mistral-window", "deepseek_v3", "mixtral")
    decoders = [load_decoder(tiny.save(name, models_folder), parse_precision(precision), pack=True) for name in names]
    outcomes = [
        run_schedule(decoders[seed % len(names)], 7000 + seed, guesses=seed % 4 == 1, ngram=seed % 4 == 3)
        for seed in range(20)
    ]
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
    assert sum(outcome.tokens for outcome in outcomes) > 200


def test_the_comparison_can_fail(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a prefix cache that looks at lengths instead of tokens, the same comparison finds it."""
    monkeypatch.setattr("deepseek_r1.engine.sequence.block_hash", lambda parent, tokens: block_hash(parent, []))
    problems = [p for seed in range(12) for p in run_schedule(decoders["llama"], seed).problems]
    assert problems


def test_packed_scores_what_paged_sampled(decoders: dict[str, Decoder]) -> None:
    for decoder in decoders.values():
        request = GenerateRequest("r", list(range(20, 51)), SamplingParams(40, seed=3, logprobs=0, ignore_eos=True))
        tokens, logprobs = alone(decoder, request)
        ids = torch.tensor(request.prompt_ids + tokens)
        with torch.no_grad():
            logits = decoder.logits(decoder(ids, torch.arange(len(ids)), Packed([len(ids)]))).double()
        # The same logits; the sampler's sum over the vocabulary may run in another order than torch's.
        scores = logits - logits.logsumexp(-1, keepdim=True)
        want = scores[30:-1].gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
        assert (want - torch.tensor(logprobs, dtype=torch.float64)).abs().max() <= max(TOLERANCE, 1e-14)


def test_prefix_cache_is_used_and_choices_share_their_prompt(decoders: dict[str, Decoder]) -> None:
    engine = make_engine(decoders["llama"], 64, 16, 8, 256)
    prompt = list(range(10, 110))
    for choice in range(4):
        engine.submit(GenerateRequest(f"c{choice}", prompt, SamplingParams(3, seed=1, ignore_eos=True), choice))
    while engine.has_work:
        engine.step()
    assert engine.stats.prompt_tokens == 100 + 3 * (100 - 96), "the other choices compute the last block alone"
    assert engine.stats.prefix_hit_tokens == 3 * 96


def test_admission_is_exact(decoders: dict[str, Decoder]) -> None:
    engine = make_engine(decoders["llama"], 4, 16, 4, 64)
    assert engine.max_model_len == 64
    engine.submit(GenerateRequest("fits", [9] * 50, SamplingParams(14, **GREEDY)))
    with pytest.raises(RequestError, match="65") as error:
        engine.submit(GenerateRequest("not", [9] * 51, SamplingParams(14, **GREEDY)))
    assert error.value.code == "context_length_exceeded"
    for prompt, params in (
        ([], SamplingParams(1)),
        ([9], SamplingParams(0)),
        ([320], SamplingParams(1)),
        ([-1], SamplingParams(1)),
    ):
        with pytest.raises(RequestError):
            engine.submit(GenerateRequest("bad", prompt, params))
    count = 0
    while engine.has_work:
        count += len(engine.step())
    assert count == 14


def test_cancelled_requests_free_their_slot_at_once(decoders: dict[str, Decoder]) -> None:
    engine = make_engine(decoders["llama"], 64, 16, 1, 64)
    engine.submit(GenerateRequest("first", [9] * 20, SamplingParams(50, **GREEDY)))
    engine.submit(GenerateRequest("second", [8] * 20, SamplingParams(5, **GREEDY)))
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (1, 1)
    engine.cancel(["first", "unknown"])
    assert [output.request_id for output in engine.step()] == ["second"]
    engine.cancel(["second"])
    assert not engine.has_work and engine.scheduler.pool.used == 0


@pytest.mark.parametrize("split", [True, False], ids=["tags-in-pieces", "tag-in-one"])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_thinking_budget_closes_at_an_exact_index(decoders: dict[str, Decoder], budget: int, split: bool) -> None:
    engine = make_engine(decoders["llama"], 64, 16, 4, 64)
    table = [b"w "] * engine.vocab_size
    close = (300, 301, 302) if split else (300,)
    for token, text in zip(close, (b"</", b"think", b">.") if split else (b"</think>",), strict=True):
        table[token] = text
    engine.set_vocabulary(table, ())
    think = ThinkFormat(close_ids=close, starts_open=True)
    bias = dict.fromkeys(close, -100.0)
    params = SamplingParams(16, seed=1, max_thinking_tokens=budget, think=think, logit_bias=bias)
    request = GenerateRequest("r", list(range(30, 50)), params)
    engine.submit(request)
    tokens = []
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.token_ids]
    assert tuple(tokens[budget : budget + len(close)]) == close
    assert len(tokens) == 16 and not set(tokens[budget + len(close) :]) & set(close)
    # A resume in the middle of the inserted close goes on with the rest of it.
    for kept in range(1, budget + len(close) + 2):
        engine.submit(GenerateRequest("again", request.prompt_ids, params, 0, tokens[:kept]))
        rest = []
        while engine.has_work:
            rest += [token for output in engine.step() for token in output.token_ids]
        assert tokens[:kept] + rest == tokens


def test_stop_strings_and_stop_tokens_end_the_answer(decoders: dict[str, Decoder]) -> None:
    engine = make_engine(decoders["llama"], 64, 16, 4, 64)
    free = alone(decoders["llama"], GenerateRequest("r", [40, 41], SamplingParams(12, **GREEDY, logprobs=0)))[0]
    text = "".join(chr(65 + token % 26) for token in free)
    stop = text[4:7]
    end = text.index(stop) + 3
    ends = {
        "string": SamplingParams(12, **GREEDY, stop=(stop.encode(),)),
        "token": SamplingParams(12, **GREEDY, stop_token_ids=(free[3],)),
    }
    for name, params in ends.items():
        engine.submit(GenerateRequest(name, [40, 41], params))
    tokens: dict[str, list[int]] = {name: [] for name in ends}
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            reasons[output.request_id] = output.finish_reason
    assert tokens["string"] == free[:end] and reasons["string"] == "stop"
    assert tokens["token"] == free[: free.index(free[3]) + 1] and reasons["token"] == "stop"
