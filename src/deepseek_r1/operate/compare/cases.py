"""What is measured: the cases, their prompts, and the figures that follow from the times at which tokens arrived."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_r1.config.bench import DEFAULT_CASES
from deepseek_r1.core.errors import ConfigError

SHORT_PROMPT = 16
"""Tokens of a prompt where decoding is what is measured."""

MOST_CONCURRENT = 32
MOST_TOKENS = 1024

Phase = Literal["cold", "prefill", "decode", "concurrent"]


@dataclass(frozen=True)
class Case:
    """One row of the comparison: so many prompts of so many tokens, started together, so many new tokens each.

    `repeats` limits the rounds it is run in (None: all of them).
    """

    name: str
    phase: Phase
    prompts: int
    prompt_tokens: int
    new_tokens: int
    repeats: int | None = None

    @property
    def words(self) -> str:
        """The case as tables name it."""
        match self.phase:
            case "cold":
                return "cold start to first token"
            case "prefill":
                return f"prefill of {self.prompt_tokens} tokens"
            case "decode":
                return "decode, alone"
            case "concurrent":
                return f"decode, {self.prompts} concurrent"


def parse_cases(text: str) -> list[Case]:
    """Cases from "cold:STARTS,prefill:TOKENS,decode:TOKENS,CONCURRENT:TOKENS". Raises `ConfigError`."""
    cases = [_case(word.strip()) for word in text.split(",") if word.strip()]
    if not cases:
        raise ConfigError("--cases names no case", remedy=f"write {DEFAULT_CASES}")
    if len({case.name for case in cases}) < len(cases):
        raise ConfigError("--cases names a case twice", remedy="name each once")
    return cases


def _case(word: str) -> Case:
    name, _, amount = word.partition(":")
    if not amount.isdecimal() or not 1 <= int(amount) <= MOST_TOKENS:
        raise ConfigError(f"case {word!r} has no amount from 1 to {MOST_TOKENS}", remedy=f"write {DEFAULT_CASES}")
    count = int(amount)
    if name == "cold":
        return Case(name, "cold", 1, SHORT_PROMPT, 1, repeats=count)
    if name == "prefill":
        return Case(name, "prefill", 1, count, 1)
    if name == "decode" and count > 1:
        return Case(name, "decode", 1, SHORT_PROMPT, count)
    if name.isdecimal() and 2 <= int(name) <= MOST_CONCURRENT and count > 1:
        return Case(name, "concurrent", int(name), SHORT_PROMPT, count)
    raise ConfigError(
        f"there is no case {word!r}",
        remedy=f"write cold, prefill, decode or a number from 2 to {MOST_CONCURRENT}, with an amount: {DEFAULT_CASES}",
    )


def prompts(case: Case, seed: int, turn: int, vocab_size: int) -> list[list[int]]:
    """The prompts of one round: random ids, the same for every engine and new in every round, so no cache helps."""
    # The first ids of a vocabulary are where its special tokens usually stand.
    low = min(1000, vocab_size // 2)
    generator = random.Random(f"{seed}/{case.name}/{turn}")
    return [[generator.randrange(low, vocab_size) for _ in range(case.prompt_tokens)] for _ in range(case.prompts)]


def figures(case: Case, seconds: Sequence[Sequence[float]]) -> dict[str, float]:
    """The figures of one run from the arrival times of each prompt's tokens; `rate` (tokens/s) is what is compared.

    Prefill: prompt tokens over the time to the first token. Decode alone: tokens after the first over the time they
    took. Concurrent: all new tokens over the time from the start to the last one, the short prompts' prefill included.
    """
    first, last = max(times[0] for times in seconds), max(times[-1] for times in seconds)
    found = {"first_token_seconds": first, "seconds": last}
    match case.phase:
        case "cold" | "prefill":
            found["rate"] = case.prompt_tokens / first
        case "decode":
            found["rate"] = (case.new_tokens - 1) / (last - first)
        case "concurrent":
            found["rate"] = case.prompts * case.new_tokens / last
            # Without the prompts: between the moment when all have their first token, and the end.
            after = sum(1 for times in seconds for time in times if time > first)
            found["decode_rate"] = after / (last - first) if last > first else 0.0
    return found


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of tokens, counted from the start of each answer up to the first difference, that two engines agree on."""
    same = 0
    for one, other in zip(ours, theirs, strict=True):
        for mine, yours in zip(one, other, strict=True):
            if mine != yours:
                break
            same += 1
    return same / sum(map(len, ours))


def as_dict(case: Case) -> dict[str, Any]:
    """The case as reports hold it."""
    return {
        "name": case.name,
        "phase": case.phase,
        "words": case.words,
        "prompts": case.prompts,
        "prompt_tokens": case.prompt_tokens,
        "new_tokens": case.new_tokens,
    }
