"""Rewards: their numbers at the borders, what composes them, and that none can end a run."""

from __future__ import annotations

import importlib
import math
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.data.tasks.families import problems
from deepseek_r1.data.tasks.item import Item
from deepseek_r1.data.tasks.problem import Problem, answer_text
from deepseek_r1.train.rewards import (
    STAGES,
    Part,
    Reward,
    apply,
    correct,
    format_reward,
    length_reward,
    load_stage_specific_reward,
    math_verify_reward,
)

pytest.importorskip("reasoning_gym")
PROBLEM = next(iter(problems("chain_sum", 2, 0, 1)))
RIGHT = answer_text(PROBLEM)
WRONG = RIGHT + "1"


def test_correct_is_the_familys_score() -> None:
    assert correct(PROBLEM, RIGHT, 9, True) == 1.0
    assert correct(PROBLEM, WRONG, 9, True) == 0.0


@pytest.mark.parametrize(
    ("text", "finished", "reward"),
    [
        ("<think>a</think>b", True, 1.0),
        (" \n<think>\n</think>\nb\n", True, 1.0),
        ("<think>a</think>b", False, 0.0),
        ("<think>a</think> \n", True, 0.0),
        ("<think>a", True, 0.0),
        ("a</think>b", True, 0.0),
        ("b", True, 0.0),
        ("", True, 0.0),
        ("b<think>a</think>c", True, 0.0),
        ("</think>a<think>b", True, 0.0),
        ("<think>a</think>b</think>c", True, 0.0),
        ("<think><think>a</think>b", True, 0.0),
        ("<think>a</think><think>b</think>c", True, 0.0),
    ],
)
def test_format(text: str, finished: bool, reward: float) -> None:
    assert format_reward(PROBLEM, text, 5, finished) == reward


def test_length_falls_in_a_straight_line() -> None:
    reward = length_reward(100, 40)
    assert [reward(PROBLEM, "", count, True) for count in (0, 60, 70, 80, 100, 101, 10_000)] == [
        0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0,
    ]  # fmt: skip
    assert length_reward(100)(PROBLEM, "", 75, True) == 0.0
    assert length_reward(100)(PROBLEM, "", 80, True) == -0.2


@pytest.mark.parametrize(("limit", "soft"), [(100, 0), (100, 101), (0, None), (-4, None), (10, -1)])
def test_a_length_that_is_not_possible_is_refused(limit: int, soft: int | None) -> None:
    with pytest.raises(ConfigError, match="length reward"):
        length_reward(limit, soft)


@pytest.mark.parametrize(
    ("stage", "text", "tokens", "total"),
    [
        (1, RIGHT, 10, 1.5), (1, WRONG, 10, 0.5), (1, PROBLEM.answer, 10, 1.0), (1, "", 10, 0.0),
        (2, RIGHT, 10, 1.1), (2, WRONG, 10, 0.1), (2, PROBLEM.answer, 10, 1.0),
        (3, RIGHT, 10, 1.0), (3, RIGHT, 90, 0.5), (3, RIGHT, 500, 0.0), (3, WRONG, 500, -1.0),
        (4, RIGHT, 500, 1.0), (4, WRONG, 10, 0.0),
    ],
)  # fmt: skip
def test_the_stages(stage: int, text: str, tokens: int, total: float) -> None:
    reward = load_stage_specific_reward(stage, limit=100, soft=20)
    found = apply(reward, PROBLEM, text, tokens, True)
    assert found.total == pytest.approx(total)
    assert found.error is None
    assert found.parts["correct"] == float(text != WRONG and text != "")
    assert reward(PROBLEM, text, tokens, True) == found.total


@given(st.sampled_from(STAGES), st.text(max_size=40), st.integers(0, 10**9), st.booleans())
def test_the_stages_are_bounded(stage: int, text: str, tokens: int, finished: bool) -> None:
    assert -1.0 <= apply(load_stage_specific_reward(stage), PROBLEM, text, tokens, finished).total <= 1.5


@pytest.mark.parametrize("stage", [0, 5, -1, "1", None])
def test_another_stage_names_those_that_exist(stage: Any) -> None:
    with pytest.raises(ConfigError, match="no stage") as caught:
        load_stage_specific_reward(stage)
    assert "1, 2, 3, 4" in caught.value.remedy


def broken(problem: Problem, text: str, token_count: int, finished: bool) -> float:
    raise KeyError("price")


def test_a_reward_that_fails_earns_nothing_and_is_named() -> None:
    found = apply(broken, PROBLEM, RIGHT, 10, True)
    assert (found.total, found.parts, found.error) == (0.0, {}, "broken: KeyError: 'price'")
    both = Reward((Part("correct", correct), Part("mine", broken, 0.5)))
    found = apply(both, PROBLEM, RIGHT, 10, True)
    assert (found.total, found.parts, found.error) == (0.0, {"correct": 1.0}, "mine: KeyError: 'price'")
    with pytest.raises(KeyError):
        both(PROBLEM, RIGHT, 10, True)


@pytest.mark.parametrize("returned", [math.nan, math.inf, None, "much", []])
def test_what_is_no_number_is_a_failure(returned: Any) -> None:
    found = apply(lambda *_: returned, PROBLEM, RIGHT, 10, True)
    assert found.total == 0.0
    assert found.error is not None


def test_whoever_stops_the_run_is_not_held_back() -> None:
    def stopped(*_: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(stopped, PROBLEM, RIGHT, 10, True)


def test_rewards_compose_and_their_parts_have_names_of_their_own() -> None:
    inner = Reward((Part("correct", correct), Part("format", format_reward, 0.5)))
    outer = Reward((Part("inner", inner, 2.0), Part("length", length_reward(100, 40))))
    found = apply(outer, PROBLEM, RIGHT, 80, True)
    assert found.parts == {"inner": 1.5, "length": -0.5}
    assert found.total == 2.5
    with pytest.raises(ConfigError, match="named"):
        Reward((Part("same", correct), Part("same", format_reward)))


def asked(answer: str) -> Problem:
    return Problem("own", 1, "?", answer, "", ("own", 1, 0, 0), Item("?", answer, {}))


@pytest.mark.parametrize(
    ("truth", "text", "reward"),
    [
        ("3/4", r"\boxed{\frac{3}{4}}", 1.0),
        ("0.5", "<think>a</think>\n1/2", 1.0),
        ("12", "12.0", 1.0),
        ("12", "13", 0.0),
        ("12", "<think>12", 0.0),
        ("12", "no number", 0.0),
    ],
)
def test_math_verify_compares_values(truth: str, text: str, reward: float) -> None:
    failures: Counter[str] = Counter()
    assert math_verify_reward(failures)(asked(truth), text, 9, True) == reward
    assert not failures


def test_what_math_verify_raises_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: Counter[str] = Counter()
    reward = math_verify_reward(failures)
    library = importlib.import_module("math_verify")
    timeout = importlib.import_module("math_verify.errors").TimeoutException
    for error in (RecursionError(), timeout()):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> bool:
            raise error

        monkeypatch.setattr(library, "verify", fail)
        assert reward(asked("12"), "12", 9, True) == 0.0
    assert failures == {"RecursionError": 1, "TimeoutException": 1}


def test_outside_the_main_thread_math_verify_fails_countably() -> None:
    failures: Counter[str] = Counter()
    earned: list[float] = []
    reward = math_verify_reward(failures)
    thread = threading.Thread(target=lambda: earned.append(reward(asked("12"), "12", 9, True)))
    thread.start()
    thread.join()
    assert earned == [0.0]
    assert failures == {"ValueError": 1}


def test_without_math_verify_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UnsupportedError, match="math-verify") as caught:
        math_verify_reward(Counter())
    assert "deepseek-r1-toolkit[train]" in caught.value.remedy
