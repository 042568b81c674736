"""Which problems there are: deterministic, split without overlap, and never from the families kept for evaluation."""

from __future__ import annotations

import builtins
import importlib
from dataclasses import replace
from typing import Any

import pytest

from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.data.tasks import gym
from deepseek_r1.data.tasks.families import (
    FAMILIES,
    LEVELS,
    OUTSIDE,
    describe,
    outside_problems,
    problem_at,
    problems,
)
from deepseek_r1.data.tasks.problem import answer_text, decontaminate, normalised
from deepseek_r1.data.tasks.scoring import score

pytest.importorskip("reasoning_gym")


def test_no_family_kept_for_evaluation_is_trained() -> None:
    assert set(OUTSIDE) == {"calendar_arithmetic", "letter_counting", "number_sequence", "family_relationships"}
    assert not set(OUTSIDE) & set(FAMILIES)
    for family in OUTSIDE:
        with pytest.raises(ConfigError, match="is not trained"):
            problems(family, 1, 0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_splits_of_a_family_share_nothing(family: str) -> None:
    for level in LEVELS:
        train = list(problems(family, level, 3, 150))
        test = list(problems(family, level, 3, 30, "test"))
        assert len(train) == 150
        assert len(test) >= 5
        questions = [normalised(problem.question) for problem in test]
        assert len(set(questions)) == len(questions)
        assert decontaminate(train, test) == (train, 0)
        assert {problem.place for problem in train}.isdisjoint(problem.place for problem in test)


# What is held out, read from the question's words and numbers alone.
HELD_OUT = {
    "basic_arithmetic": lambda words: words.removeprefix("Calculate ").lstrip("-( ").startswith("7"),
    "chain_sum": lambda words: words.split(": ")[1].startswith("7"),
    "countdown": lambda words: numbers(words.split("\n")[0].replace(":", ","))[target(words)] % 10 == 7,
    "fraction_simplification": lambda words: "\\dfrac" in words,
    "gcd": lambda words: numbers(words.split(": ")[1])[0] % 10 == 4,
    "leg_counting": lambda words: numbers(words)[0] == 7,
    "number_sorting": lambda words: words.split(": ")[1].lstrip("-").startswith("7"),
    "prime_factorization": lambda words: numbers(words)[0] % 10 in (4, 9),
    "products": lambda words: words.split(": ")[1].startswith("7"),
    "simple_equations": lambda words: words.split("= ")[1].lstrip("-").startswith("7"),
}


def numbers(text: str) -> list[int]:
    return [int(word) for word in "".join(c if c.isdigit() else " " for c in text).split()]


def target(question: str) -> int:
    """Where in the first line the target stands: behind the numbers in one of the templates."""
    return -1 if question.startswith("Using") else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_held_out_is_seen_in_the_question(family: str) -> None:
    assert set(HELD_OUT) == set(FAMILIES)
    for level in LEVELS:
        assert not any(HELD_OUT[family](problem.question) for problem in problems(family, level, 4, 100))
        assert all(HELD_OUT[family](problem.question) for problem in problems(family, level, 4, 10, "test"))


def test_a_problem_is_the_same_every_time_and_another_seed_gives_others() -> None:
    first = list(problems("chain_sum", 2, 5, 20))
    gym._data_set.cache_clear()
    assert list(problems("chain_sum", 2, 5, 20)) == first
    assert [problem_at(problem.place) for problem in first] == first
    others = {problem.question for problem in problems("chain_sum", 2, 6, 20)}
    assert len(others & {problem.question for problem in first}) < 3


def test_a_small_split_ends_and_repeats_nothing() -> None:
    questions = [problem.question for problem in problems("prime_factorization", 1, 0, 500, "test")]
    assert sorted(int(question.split(".")[0].split(" ")[-1]) for question in questions) == [4, 9, 14, 19, 24, 29]


def test_problems_for_evaluation_have_no_trace_and_their_own_answers_score() -> None:
    for family in OUTSIDE:
        found = list(outside_problems(family, 1, 20))
        assert len(found) == 20
        assert found == list(outside_problems(family, 1, 20))
        for problem in found:
            assert (problem.trace, problem.level) == ("", 0)
            assert score(problem, answer_text(problem)) == 1.0
    with pytest.raises(ConfigError, match="not kept for evaluation"):
        outside_problems("gcd", 1, 1)


def test_decontamination_removes_by_normalised_question() -> None:
    train = list(problems("products", 4, 0, 10))
    same = replace(train[3], question=f"  {train[3].question.upper()}\n", place=("products", 4, 9, 9))
    kept, removed = decontaminate(iter(train), iter([same]))
    assert removed == 1
    assert kept == train[:3] + train[4:]
    assert decontaminate([], [same]) == ([], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chain_sums", 1, 0, 1), "did you mean 'chain_sum'"),
        (("chain_sum", 5, 0, 1), "no level 5"),
        (("chain_sum", 0, 0, 1), "no level 0"),
        (("chain_sum", 1, -1, 1), "negative"),
        (("chain_sum", 1, 0, 1, "validation"), "split 'validation'"),
    ],
)
def test_what_does_not_exist_is_an_error_with_a_remedy(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        list(problems(*arguments))
    assert caught.value.remedy
    with pytest.raises(ConfigError, match="is not known"):
        problem_at(("sudoku", 1, 0, 0))


def test_the_table_of_families() -> None:
    rows = describe()
    assert [row["family"] for row in rows] == list(FAMILIES)
    assert all(row["held_out"] and set(row["levels"]) == set(LEVELS) for row in rows)


def test_without_reasoning_gym_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "reasoning_gym":
            raise builtins.ImportError("No module named 'reasoning_gym'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    gym._data_set.cache_clear()
    with pytest.raises(UnsupportedError, match="reasoning-gym") as caught:
        list(problems("gcd", 1, 0, 1))
    assert "deepseek-r1-toolkit[train]" in caught.value.remedy
