"""Rewards for reinforcement learning whose truth is computed, never guessed, and the reward of each stage of training.

A reward is a function of (problem, text, number of tokens, whether the text was finished) that returns a number.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.data.tasks.problem import Problem
from deepseek_r1.data.tasks.scoring import CLOSE, OPEN, final_answer, score

RewardFunction = Callable[[Problem, str, int, bool], float]

STAGES = (1, 2, 3, 4)

VERIFY_SECONDS = 5


@dataclass(frozen=True)
class Part:
    """A reward function, what it is called in logs, and its weight in the total."""

    name: str
    function: RewardFunction
    weight: float = 1.0


@dataclass(frozen=True)
class Reward:
    """A weighted sum of named parts; itself a reward function, and so a part of another one if need be."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ConfigError(f"the parts of a reward are named {names}", remedy="give each a name of its own")

    def __call__(self, problem: Problem, text: str, token_count: int, finished: bool) -> float:
        """The weighted sum. Raises what a part raises; `apply` doesn't."""
        return sum(part.weight * part.function(problem, text, token_count, finished) for part in self.parts)


@dataclass(frozen=True)
class Rewarded:
    """What a text earned: the total, each part before its weight, and what failed (`name: error: message`) if any."""

    total: float
    parts: dict[str, float]
    error: str | None = None


def apply(reward: Reward | RewardFunction, problem: Problem, text: str, token_count: int, finished: bool) -> Rewarded:
    """Reward a text, whatever the reward does: one that raises, or returns no finite number, earns 0 and names itself.

    A run goes on then; `Rewarded.error` is for its counters. The parts that were known before the failure are kept.
    """
    parts = reward.parts if isinstance(reward, Reward) else (Part(_name(reward), reward),)
    values: dict[str, float] = {}
    for part in parts:
        try:
            value = float(part.function(problem, text, token_count, finished))
        except Exception as error:  # it may be anybody's code
            return Rewarded(0.0, values, f"{part.name}: {type(error).__name__}: {error}")
        if not math.isfinite(value):
            return Rewarded(0.0, values, f"{part.name}: returned {value}, not a finite number")
        values[part.name] = value
    return Rewarded(sum(part.weight * values[part.name] for part in parts), values)


def correct(problem: Problem, text: str, token_count: int, finished: bool) -> float:
    """1.0 for a right final answer, else 0.0 (`scoring.score`)."""
    return score(problem, text)


def format_reward(problem: Problem, text: str, token_count: int, finished: bool) -> float:
    """1.0 for a finished text of exactly one <think>…</think> at its beginning and an answer after it, else 0.0."""
    before, _, rest = text.partition(OPEN)
    _, closed, answer = rest.partition(CLOSE)
    tags = text.count(OPEN), text.count(CLOSE)
    return float(finished and tags == (1, 1) and not before.strip() and bool(closed) and bool(answer.strip()))


def length_reward(limit: int, soft: int | None = None) -> RewardFunction:
    """The soft penalty on over-long texts of DAPO (arXiv 2503.14476, equation 13), from 0 down to -1.

    0 up to `limit - soft` tokens, from there in a straight line to -1 at `limit` tokens, and -1 beyond. `soft` is a
    quarter of the limit where it isn't given. Raises `ConfigError` unless 0 < soft <= limit.
    """
    soft = max(1, limit // 4) if soft is None else soft
    if not 0 < soft <= limit:
        raise ConfigError(
            f"a length reward with limit {limit} and soft {soft} is not possible", remedy="choose 0 < soft <= limit"
        )
    return partial(_length, limit, soft)


def math_verify_reward(failures: Counter[str]) -> RewardFunction:
    """A reward of 1.0 where math-verify finds the final answer equal to the problem's, else 0.0.

    Whatever the library raises, its timeout of `VERIFY_SECONDS` included, earns 0.0 and is counted in `failures` by the
    error's type. The library's timeouts work in the main thread alone. Raises `UnsupportedError` if it isn't installed.
    """
    try:
        importlib.import_module("math_verify")
    except ImportError as error:
        raise UnsupportedError(
            f"this reward needs math-verify: {error}", remedy="pip install 'deepseek-r1-toolkit[train]'"
        ) from None
    return partial(_verified, failures)


def load_stage_specific_reward(stage: int, *, limit: int = 320, soft: int | None = None) -> Reward:
    """The reward of a stage of training, 1 to 4.

    | stage | total | range |
    |---|---|---|
    | 1 | correct + 0.5 format: the tags are learnt first | 0 to 1.5 |
    | 2 | correct + 0.1 format: they are only kept | 0 to 1.1 |
    | 3 | correct + 1.0 length(limit, soft): no longer than needed | -1 to 1 |
    | 4 | correct | 0 to 1 |

    `limit` and `soft` are tokens. Raises `ConfigError` for another stage.
    """
    right = Part("correct", correct)
    match stage:
        case 1:
            return Reward((right, Part("format", format_reward, 0.5)))
        case 2:
            return Reward((right, Part("format", format_reward, 0.1)))
        case 3:
            return Reward((right, Part("length", length_reward(limit, soft))))
        case 4:
            return Reward((right,))
    raise ConfigError(f"there is no stage {stage!r}", remedy=f"stages: {', '.join(map(str, STAGES))}")


def _length(limit: int, soft: int, problem: Problem, text: str, token_count: int, finished: bool) -> float:
    return max(-1.0, min(0.0, (limit - soft - token_count) / soft))


def _verified(failures: Counter[str], problem: Problem, text: str, token_count: int, finished: bool) -> float:
    answer = final_answer(text)
    if answer is None:
        return 0.0
    library = importlib.import_module("math_verify")
    # Its timeout is no `Exception`: it must not be caught by what it interrupts.
    timeout = importlib.import_module("math_verify.errors").TimeoutException
    try:
        truth, given = (
            library.parse(said, parsing_timeout=VERIFY_SECONDS, raise_on_error=True)
            for said in (problem.answer, answer)
        )
        return float(library.verify(truth, given, timeout_seconds=VERIFY_SECONDS, raise_on_error=True))
    except (Exception, timeout) as error:  # it parses what a model made up
        failures[type(error).__name__] += 1
        return 0.0


def _name(function: RewardFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
