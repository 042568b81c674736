"""What counts as a right answer, and what a model's text may not get away with."""

from __future__ import annotations

import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.data.tasks.families import FAMILIES, OUTSIDE, outside_problems, problems
from deepseek_r1.data.tasks.problem import Problem
from deepseek_r1.data.tasks.scoring import MAX_ANSWER, final_answer, score

pytest.importorskip("reasoning_gym")


def first(family: str, level: int = 2) -> Problem:
    return next(iter(problems(family, level, 1, 1)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("<think>\n1+1=2\n</think>\n 42 \n\n", "42"),
        ("<think>a</think>not this\n42", "42"),
        ("<think>a</think><think>b</think>42", "42"),
        ("no tag</think>42", "42"),
        ("Answer: 42", "42"),
        ("answer:42", "42"),
        ("The final answer is 42", "42"),
        (r"So it is \boxed{42}.", "42"),
        (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        ("<think>a</think>", None),
        ("<think>42", None),
        ("<think>a</think>\n<think>42", None),
        ("", None),
        (r"\boxed{42", None),
        ("Answer: ", None),
        ("4" * (MAX_ANSWER + 1), None),
    ],
)
def test_the_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_answer_an_unfinished_thought_and_no_answer_score_nothing(family: str) -> None:
    for problem in problems(family, 2, 1, 20):
        assert score(problem, f"<think>\n{problem.trace}\n</think>\nAnswer: {problem.answer}") == 1.0
        assert score(problem, f"<think>\n{problem.trace}\n{problem.answer}") == 0.0
        assert score(problem, f"<think>\n{problem.trace}\n</think>\n") == 0.0
        for wrong in (f"{problem.answer}1", f"1{problem.answer}", "x", "nan", "1/0", "-", "[]", "×"):
            assert score(problem, wrong) == 0.0, wrong


def test_forms_that_the_scorers_accept() -> None:
    total = first("chain_sum")
    assert score(total, f"{int(total.answer)}.0") == 1.0
    fraction = first("fraction_simplification")
    above, below = fraction.answer.split("/")
    assert score(fraction, rf"\boxed{{\frac{{{above}}}{{{below}}}}}") == 1.0
    factors = first("prime_factorization", 4)
    assert score(factors, factors.answer.replace(" ", "")) == 1.0


def test_a_part_of_reasoning_gyms_reward_is_no_reward() -> None:
    fraction = next(p for p in problems("fraction_simplification", 3, 1, 50) if p.item.metadata["factor"] > 1)
    metadata = fraction.item.metadata
    assert score(fraction, f"{metadata['numerator']}/{metadata['denominator']}") == 0.0
    composite = next(p for p in problems("prime_factorization", 4, 1, 50) if " × " in p.answer)
    assert score(composite, str(composite.item.metadata["number"])) == 0.0


def test_numbers_that_are_nearly_sorted_right_are_wrong() -> None:
    problem = first("number_sorting")
    close = [f"{float(number) + 0.5}" for number in problem.item.metadata["sorted_numbers"]]
    assert score(problem, str(close)) == 0.0
    assert score(problem, problem.answer.replace("'", "")) == 1.0


@pytest.mark.parametrize(
    "hostile",
    ["9**9**9**9", "__import__('os').getcwd()", "7//2", "(" * 150, "1/(1-1)", "9" * 190, "1e5", "open('x')"],
)
def test_a_countdown_answer_is_never_run_as_code(hostile: str) -> None:
    begun = time.monotonic()
    assert score(first("countdown"), hostile) == 0.0
    assert time.monotonic() - begun < 2.0


def test_countdown_takes_any_formula_that_is_right() -> None:
    problem = next(p for p in problems("countdown", 1, 1, 50) if "+" in p.answer)
    left, right = problem.answer.split("+")
    assert score(problem, f"({right}) + {left}") == 1.0
    assert score(problem, str(problem.item.metadata["target"])) == 0.0


EVERY = [first(family) for family in FAMILIES] + [
    problem for family in OUTSIDE for problem in islice(outside_problems(family, 1, 1), 1)
]


@given(st.sampled_from(EVERY), st.text(max_size=60) | st.text("0123456789+-*/()[]'×., e", max_size=60))
def test_no_text_makes_scoring_fail(problem: Problem, text: str) -> None:
    assert score(problem, text) in (0.0, 1.0)
