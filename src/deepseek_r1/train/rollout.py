"""Answers of the policy itself: the serving engine in this process, over the very weights that learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from deepseek_r1.data.tasks.problem import Problem
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.memory import BLOCK_SIZE
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.train.policy import ADAPTER, Policy
from deepseek_r1.train.rewards import Reward, RewardFunction, apply

MOST_AT_ONCE = 32
PROMPT_ROOM = 512  # tokens of the longest prompt that the pool has room for beside the answer


class Sampler(Protocol):
    """What makes answers: the engine, or a test's stand-in."""

    def sample(self, prompts: Sequence[list[int]], group: int, tokens: int, seed: int) -> list[list[Answer]]:
        """`group` answers to each prompt, at temperature 1."""
        ...


@dataclass(frozen=True)
class Answer:
    """Token ids of one answer, the log-probability that each had, and whether it ended by itself."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


@dataclass(frozen=True)
class Rollout:
    """An answer with what it earned. `advantage` is relative to its group."""

    prompt: list[int]
    ids: list[int]
    logprobs: list[float]
    advantage: float

    def as_json(self) -> dict[str, Any]:
        """Plain data; floats keep every bit."""
        return asdict(self)


class EngineSampler:
    """Rollouts by the serving engine: continuous batches, paged KV, shared prompts."""

    def __init__(self, policy: Policy, tokenizer: Tokenizer, answer_tokens: int) -> None:
        length = min(policy.decoder.config.max_position, PROMPT_ROOM + answer_tokens)
        blocks = MOST_AT_ONCE * -(-length // BLOCK_SIZE)
        self.engine = Engine(policy.decoder, num_blocks=blocks, block_size=BLOCK_SIZE, max_concurrent=MOST_AT_ONCE)
        self.engine.set_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
        self._adapter = None if policy.lora is None else ADAPTER

    def sample(self, prompts: Sequence[list[int]], group: int, tokens: int, seed: int) -> list[list[Answer]]:
        """See `Sampler`. The same weights and seed give the same answers, however they are batched."""
        if self._adapter is None:
            self.engine.weights_changed()
        else:
            self.engine.use_adapter(self._adapter)  # its factors have changed since the last time
        found: dict[str, Answer] = {}
        for number, prompt in enumerate(prompts):
            for choice in range(group):
                name = f"{number} {choice}"
                sampling = SamplingParams(max_tokens=tokens, seed=seed + number, logprobs=0)
                request = GenerateRequest(name, prompt, sampling, choice_index=choice, adapter=self._adapter)
                self.engine.submit(request)
                found[name] = Answer([], [], False)
        while self.engine.has_work:
            for output in self.engine.step():
                answer = found[output.request_id]
                answer.ids.extend(output.token_ids)
                answer.logprobs.extend(one.logprob for one in output.logprobs)
                if output.finish_reason is not None:
                    ended = output.finish_reason == "stop"
                    found[output.request_id] = Answer(answer.ids, answer.logprobs, ended)
        return [[found[f"{number} {choice}"] for choice in range(group)] for number in range(len(prompts))]


def advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward less the group's mean, over the group's standard deviation (GRPO, Shao et al. 2024).

    Exactly 0 where all are equal: the mean of eight times 1.1 is not 1.1, and they would pass for a group that differs.
    """
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviation = (sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)) ** 0.5
    return [(reward - mean) / (deviation + 1e-4) for reward in rewards]


def judge(
    problem: Problem, answers: Sequence[Answer], tokenizer: Tokenizer, reward: Reward | RewardFunction
) -> list[dict[str, Any]]:
    """What each answer earned, with its text, as the rows of `rollouts.jsonl` have it."""
    rows = []
    for answer in answers:
        text = tokenizer.decode(answer.ids)
        earned = apply(reward, problem, text, len(answer.ids), answer.finished)
        rows.append(
            {
                "prompt": problem.question,
                "text": text,
                "reward": earned.total,
                "parts": earned.parts,
                "error": earned.error,
                "tokens": len(answer.ids),
                "finished": answer.finished,
                "family": problem.family,
                "level": problem.level,
                "correct": earned.parts.get("correct", float(earned.total > 0)),
            }
        )
    return rows
