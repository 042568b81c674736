"""Rollouts of one process, and the trainer's log-probabilities of the same tokens in another one: for `prove rollouts`.

python tests/rollout_bits.py sample MODEL PRECISION TOKENS SEED FOLDER     writes TOKENS before and after an update
python tests/rollout_bits.py check MODEL PRECISION TOKENS SEED FOLDER      compares them, and prints what it found
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.kernels import ops
from deepseek_r1.models.adapters import factors
from deepseek_r1.models.locate import locate_model
from deepseek_r1.train.forward import hidden_states, logprobs_of
from deepseek_r1.train.grpo import answers_of, bundled
from deepseek_r1.train.optimizer import build_optimizer
from deepseek_r1.train.policy import ADAPTER, Policy, load_policy
from deepseek_r1.train.rollout import Rollout

ANSWER = 24
BLOCK = 16
PHASES = ("before", "after")


@dataclass(frozen=True)
class Variant:
    """How the engine runs: requests at once, tokens of a step (few: prompts come in chunks), threads."""

    at_once: int
    step_tokens: int
    threads: int


VARIANTS = (
    Variant(1, 512, 1), Variant(1, 16, 2), Variant(5, 24, 1), Variant(8, 512, 2), Variant(32, 48, 1),
    Variant(32, 512, 2),
)  # fmt: skip
CHECKS = ((1, 1), (7, 2), (32, 1))
"""Sequences of a packed batch and threads of the trainer's passes, in turn."""


def policy_of(model: str, precision: str, seed: int, start_from: Path | None = None) -> Policy:
    """The policy that a run of these settings has."""
    config = _config(model, precision, seed, start_from)
    return load_policy(config, locate_model(config.model))


def _config(model: str, precision: str, seed: int, start_from: Path | None = None) -> TrainConfig:
    adapter = {"lora_targets": ("all-linear",), "start_from": None if start_from is None else str(start_from)}
    return TrainConfig(method="grpo", model=model, steps=1, seed=seed, base_precision=precision, lr=3e-3, **adapter)


def set_threads(count: int) -> None:
    """Threads of the kernels and of torch."""
    ops.set_threads(count)
    torch.set_num_threads(count)


def prompts(count: int, vocab_size: int, draw: random.Random) -> Iterator[list[int]]:
    """Prompts of 1 to 90 tokens, each twice; four in a row share their beginning."""
    shared: list[int] = []
    own: list[int] = []
    for number in range(count):
        if number % 4 == 0:
            shared = [draw.randrange(3, vocab_size) for _ in range(draw.randrange(60))]
        if number % 2 == 0:
            own = [draw.randrange(3, vocab_size) for _ in range(draw.randrange(1, 30))]
        yield shared + own


def sample(policy: Policy, variant: Variant, tokens: int, seed: int) -> tuple[list[Rollout], dict[str, int]]:
    """At least `tokens` sampled tokens, and what the engine counted."""
    set_threads(variant.threads)
    blocks = variant.at_once * 8 + 8
    engine = Engine(
        policy.decoder, num_blocks=blocks, block_size=BLOCK,
        max_concurrent=variant.at_once, max_step_tokens=variant.step_tokens,
    )  # fmt: skip
    engine.use_adapter(ADAPTER)
    found: dict[str, Rollout] = {}
    count = -(-tokens // ANSWER)
    for number, prompt in enumerate(prompts(count, policy.decoder.config.vocab_size, random.Random(seed))):
        sampling = SamplingParams(max_tokens=ANSWER, seed=seed + number, logprobs=0, ignore_eos=True)
        engine.submit(GenerateRequest(str(number), prompt, sampling, adapter=ADAPTER))
        found[str(number)] = Rollout(prompt, [], [], 0.0)
    largest = 0
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].ids.extend(output.token_ids)
            found[output.request_id].logprobs.extend(one.logprob for one in output.logprobs)
        largest = max(largest, engine.stats.last_batch)
    stats = engine.stats
    counts = {"hits": stats.prefix_hit_tokens, "preemptions": stats.preemptions, "largest_batch": largest}
    return list(found.values()), counts


def logprobs(policy: Policy, rollouts: list[Rollout]) -> tuple[Tensor, Tensor]:
    """The trainer's log-probabilities, with gradients, and the engine's: (n,) float64 each."""
    part = answers_of(bundled(rollouts, 1 << 20))
    with policy.learning():
        hidden = hidden_states(policy.decoder, part.input_ids, part.positions, part.lengths, part.prefixes)
        assert hidden.requires_grad
        return logprobs_of(policy.decoder, ops.take_rows(hidden, part.rows), part.targets), part.old


def write_rollouts(model: str, precision: str, tokens: int, seed: int, folder: Path) -> None:
    """Rollouts of a policy, then of the same one after an update in this process; and both adapters' files."""
    policy = policy_of(model, precision, seed)
    generator = torch.Generator().manual_seed(seed)
    for part in factors(policy.decoder, ADAPTER).values():
        part.lora_B.weight.data.normal_(0, 0.02, generator=generator)
    policy.refresh()
    each = -(-tokens // len(VARIANTS))
    rows = _written(policy, "before", each, seed, folder)
    optimizer = build_optimizer(policy.parameters.items(), _config(model, precision, seed))
    ours, _ = logprobs(policy, rows[:8])
    (-ours.mean()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    policy.refresh()
    _written(policy, "after", each, seed, folder)


def _written(policy: Policy, phase: str, each: int, seed: int, folder: Path) -> list[Rollout]:
    """Sample in every way, and write the rollouts, what was counted, and the adapter that made them."""
    rollouts: list[Rollout] = []
    counts = []
    for place, variant in enumerate(VARIANTS):
        found, counted = sample(policy, variant, each, seed * 1_000_003 + 100_003 * place)
        rollouts += found
        counts.append(counted)
    policy.save(folder / phase)
    rows = [rollout.as_json() for rollout in rollouts]
    (folder / f"{phase}.json").write_text(json.dumps({"rollouts": rows, "counts": counts}))
    return rollouts


def check_rollouts(model: str, precision: str, seed: int, folder: Path) -> dict[str, Any]:
    """The largest difference of a log-probability in each phase, over all of the trainer's batches."""
    result: dict[str, Any] = {"path": ops.PATH}
    texts = []
    for phase in PHASES:
        policy = policy_of(model, precision, seed, start_from=folder / phase)
        written = json.loads((folder / f"{phase}.json").read_text())
        rollouts = [Rollout(**row) for row in written["rollouts"]]
        worst, differing, compared = 0.0, 0, 0
        for at_once, threads in CHECKS:
            set_threads(threads)
            for first in range(0, len(rollouts), at_once):
                ours, theirs = logprobs(policy, rollouts[first : first + at_once])
                apart = (ours.detach() - theirs).abs()
                worst, differing = max(worst, float(apart.max())), differing + int((apart != 0).sum())
                compared += len(apart)
        sampled = sum(len(rollout.ids) for rollout in rollouts)
        result[phase] = {"tokens": sampled, "compared": compared, "differing": differing, "worst": worst}
        result[phase] |= {name: [counted[name] for counted in written["counts"]] for name in written["counts"][0]}
        texts.append([rollout.ids for rollout in rollouts])
    result["update_is_felt"] = texts[0] != texts[1]
    return result


def main() -> int:
    kind, model, precision, tokens, seed, folder = sys.argv[1:]
    if kind == "sample":
        write_rollouts(model, precision, int(tokens), int(seed), Path(folder))
    else:
        print(json.dumps(check_rollouts(model, precision, int(seed), Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
