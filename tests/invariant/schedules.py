"""Random schedules through the engine, each request compared with itself alone. Used by a test and by prove."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import torch

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams, ThinkFormat
from deepseek_r1.engine.runner import Computed
from deepseek_r1.engine.sampler import sample
from deepseek_r1.engine.sequence import Sequence
from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import Packed, StateLayout
from deepseek_r1.models.decoder import Decoder

TOLERANCE = 0.0 if ops.NATIVE else 1e-5
"""Native kernels give a request the same bits in every schedule; torch's give log-probabilities as close as 1e-5."""

SLOT_TOLERANCE = 1e-5
"""Of models with rings or states, which have no native kernels."""


@dataclass
class Outcome:
    """What one schedule showed. A differing token passes only as a recorded tie."""

    requests: int = 0
    tokens: int = 0
    worst: float = 0.0
    ties: list[str] = field(default_factory=list)
    preemptions: int = 0
    hits: int = 0
    drafted: int = 0
    accepted: int = 0
    problems: list[str] = field(default_factory=list)


def tolerance(decoder: Decoder) -> float:
    """How far a log-probability may move between schedules."""
    slots = any(isinstance(layout, StateLayout) or layout.window is not None for layout in decoder.layouts)
    return SLOT_TOLERANCE if slots else TOLERANCE


def random_params(rng: random.Random, vocabulary: int) -> SamplingParams:
    greedy = rng.random() < 0.4
    return SamplingParams(
        max_tokens=rng.randint(1, 20),
        seed=rng.getrandbits(62),
        temperature=0 if greedy else rng.choice([0.3, 1.0, 1.7]),
        top_p=rng.choice([1.0, 1.0, 0.8, 0.3]),
        top_k=rng.choice([0, 0, 5, 40]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        presence_penalty=rng.choice([0.0, 0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        logit_bias=rng.choice([{}, {}, {rng.randrange(vocabulary): 2.0}]),
        logprobs=0,
        ignore_eos=rng.random() < 0.5,
    )


def repetitive(rng: random.Random, request: GenerateRequest) -> GenerateRequest:
    """`request` longer, likelier to repeat itself, and at times with a stop string or a budget for its reasoning."""
    params = msgspec.structs.replace(
        request.sampling,
        max_tokens=rng.randint(8, 40),
        temperature=rng.choice([0, 0, 0.1, 0.6]),
        repetition_penalty=rng.choice([1.0, 1.0, 0.8]),
        stop=rng.choice([(), (), (bytes([65 + rng.randrange(26)]),)]),
        max_thinking_tokens=rng.choice([None, None, rng.randint(0, 12)]),
        think=ThinkFormat(close_ids=(300, 301, 302), starts_open=True),
        ignore_eos=rng.random() < 0.8,
    )
    prompt = (request.prompt_ids * 3)[: max(40, len(request.prompt_ids))]
    return GenerateRequest(request.request_id, prompt, params, request.choice_index)


def make_engine(
    decoder: Decoder,
    blocks: int,
    block_size: int,
    concurrent: int,
    step_tokens: int,
    speculative: Speculation = "off",
) -> Engine:
    engine = Engine(
        decoder,
        num_blocks=blocks,
        block_size=block_size,
        max_concurrent=concurrent,
        max_step_tokens=step_tokens,
        speculative=speculative,
    )
    engine.set_vocabulary([bytes([65 + i % 26]) for i in range(engine.vocab_size)], {5, 6, 7})
    return engine


def alone(decoder: Decoder, request: GenerateRequest) -> tuple[list[int], list[float]]:
    """The request by itself: whole prefill, no cache, no guesses, room enough."""
    engine = make_engine(decoder, 64, 16, 1, 512)
    engine.submit(request)
    tokens, logprobs = list(request.output_ids), [0.0] * len(request.output_ids)
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids
            logprobs += [entry.logprob for entry in output.logprobs]
    return tokens, logprobs


@torch.no_grad()
def is_tie(decoder: Decoder, request: GenerateRequest, before: list[int], other: int) -> bool:
    """Whether a change of the logits by rounding alone makes the sampler choose `other`."""
    ids = torch.tensor(request.prompt_ids + before)
    row = decoder.logits(decoder(ids, torch.arange(len(ids)), Packed([len(ids)]))[-1:])
    state = Sequence(request, [b"x"] * row.shape[1], frozenset(), b"", 16)
    for token in before[len(request.output_ids) :]:
        state.append(token, None)
    noise = torch.Generator().manual_seed(0)
    shaken = [row + 2e-5 * (torch.rand(row.shape, generator=noise) - 0.5) for _ in range(64)]
    return any(sample(shake, [state])[0][0] == other for shake in shaken)


def guess_from(engine: Engine, rng: random.Random, wanted: dict[str, tuple[list[int], list[float]]]) -> None:
    """Let up to three guesses a step come from the known answers, one in three of them wrong."""
    runner, module = engine.runner, engine.runner.draft
    engine.scheduler.sampled_rows = 4 * engine.scheduler.max_concurrent

    def draft(done: Computed) -> None:
        module(done)  # where there is one, what it keeps must be right too
        for item in done.work:
            sequence = item.sequence
            made = len(sequence.output_ids)
            right = wanted[sequence.id][0][made : made + min(3, sequence.room_for_drafts)]
            known_all = sequence.computed == len(sequence.tokens) - 1
            guesses = [token if rng.random() < 0.67 else rng.randrange(engine.vocab_size) for token in right]
            sequence.drafts = tuple(guesses) if known_all else ()

    runner.draft = draft  # type: ignore[method-assign]


def run_schedule(decoder: Decoder, seed: int, *, guesses: bool = False, ngram: bool = False) -> Outcome:
    """One random schedule: sizes, chunks, arrivals, cancellations, shared prefixes, resumes and a scarce pool.

    With `guesses` tokens are guessed ahead, rightly and wrongly; with `ngram` as the engine does by itself, in requests
    that repeat themselves. The requests are run alone on one thread, and together on one or two.
    """
    rng = random.Random(seed)
    ops.set_threads(1)
    vocabulary = decoder.config.vocab_size
    block_size = rng.choice([2, 4, 16])
    longest = 60
    stems = [[rng.randrange(8, vocabulary) for _ in range(rng.randint(1, longest - 8))] for _ in range(2)]
    outcome = Outcome()
    requests, wanted = [], {}
    for index in range(rng.randint(2, 9)):
        stem = rng.choice(stems)
        prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(8, vocabulary) for _ in range(rng.randint(0, 8))]
        request = GenerateRequest(f"r{index}", prompt, random_params(rng, vocabulary), rng.choice([0, 0, 1]))
        request = repetitive(rng, request) if ngram else request
        tokens, logprobs = alone(decoder, request)
        if rng.random() < 0.3 and len(tokens) > 1:
            kept = rng.randint(1, len(tokens) - 1)
            request = msgspec.structs.replace(request, output_ids=tokens[:kept])
        requests.append(request)
        wanted[request.request_id] = (tokens, logprobs)
    largest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
    blocks = -(-largest // block_size) + rng.choice([0, 0, 1, 3, 20])
    sizes = (blocks, block_size, rng.randint(2, 8), rng.choice([1, 3, 16, 64, 256]))
    speculative: Speculation = "ngram" if ngram else "mtp" if guesses and len(decoder.mtp) else "off"
    ops.set_threads(rng.choice([1, 2]))
    engine = make_engine(decoder, *sizes, speculative)
    if guesses:
        guess_from(engine, rng, wanted)
    arrivals = sorted((rng.randint(0, 12), i) for i in range(len(requests)))
    cancels = {request.request_id: rng.randint(1, 25) for request in requests if rng.random() < 0.15}
    got: dict[str, tuple[list[int], list[float]]] = {r.request_id: (list(r.output_ids), []) for r in requests}
    cancelled: set[str] = set()
    step = 0
    while arrivals or engine.has_work:
        while arrivals and arrivals[0][0] <= step:
            engine.submit(requests[arrivals.pop(0)[1]])
        for name, at in cancels.items():
            if at == step:
                engine.cancel([name])
                cancelled.add(name)
        for output in engine.step():
            got[output.request_id][0].extend(output.token_ids)
            got[output.request_id][1].extend(entry.logprob for entry in output.logprobs)
        engine.scheduler.pool.check()
        step += 1
        if step > 3000:
            outcome.problems.append("the schedule does not end")
            break
    if engine.scheduler.pool.used:
        outcome.problems.append(f"{engine.scheduler.pool.used} blocks leaked")
    for request in requests:
        _compare(
            decoder,
            request,
            wanted[request.request_id],
            got[request.request_id],
            request.request_id in cancelled,
            outcome,
        )
    outcome.preemptions = engine.stats.preemptions
    outcome.hits = engine.stats.prefix_hit_tokens
    outcome.drafted, outcome.accepted = engine.stats.draft_tokens, engine.stats.accepted_tokens
    return outcome


def _compare(
    decoder: Decoder,
    request: GenerateRequest,
    want: tuple[list[int], list[float]],
    got: tuple[list[int], list[float]],
    cancelled: bool,
    outcome: Outcome,
) -> None:
    outcome.requests += 1
    kept = len(request.output_ids)
    logprobs = [0.0] * kept + got[1]
    for place in range(kept, max(len(want[0]), len(got[0]))):
        if place >= len(got[0]) and cancelled:
            return
        a = want[0][place] if place < len(want[0]) else None
        b = got[0][place] if place < len(got[0]) else None
        if a != b:
            where = f"{request.request_id} token {place}: alone {a}, in the schedule {b}"
            if a is not None and b is not None and is_tie(decoder, request, want[0][:place], b):
                outcome.ties.append(where)
            else:
                outcome.problems.append(where)
            return
        outcome.tokens += 1
        difference = abs(want[1][place] - logprobs[place])
        outcome.worst = max(outcome.worst, difference)
        if not difference <= tolerance(decoder):
            outcome.problems.append(f"{request.request_id} token {place}: logprobs differ by {difference:.2e}")
