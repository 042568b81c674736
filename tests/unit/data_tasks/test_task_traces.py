"""Every step of every trace is true, by a checker that knows no family: it reads lines as arithmetic."""

from __future__ import annotations

import ast
import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.data.tasks import columns
from deepseek_r1.data.tasks.expressions import basic_arithmetic
from deepseek_r1.data.tasks.families import FAMILIES, LEVELS, problems
from deepseek_r1.data.tasks.item import Item
from deepseek_r1.data.tasks.practice import STEPS_A_SHEET, reworded, sheets
from deepseek_r1.data.tasks.problem import Problem, answer_text
from deepseek_r1.data.tasks.scoring import score

reasoning_gym = pytest.importorskip("reasoning_gym")

OPERATIONS: dict[type, Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
CALLS: dict[str, Callable[[list[int]], int]] = {"min": min, "max": max, "gcd": lambda numbers: math.gcd(*numbers)}


def value(formula: str) -> Fraction:
    """What a formula comes to, exactly. Raises for all but numbers, four operations, min, max and gcd."""

    def of(node: ast.expr) -> Fraction:
        match node:
            case ast.BinOp(left=left, op=operation, right=right):
                return OPERATIONS[type(operation)](of(left), of(right))
            case ast.UnaryOp(op=operation, operand=operand):
                return OPERATIONS[type(operation)](of(operand))
            case ast.Constant(value=int(number)):
                return Fraction(number)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return Fraction(CALLS[name]([int(of(argument)) for argument in arguments]))
        raise AssertionError(formula)

    return of(ast.parse(re.sub(r"\b0+(?=\d)", "", formula), mode="eval").body)


COLUMN = re.compile(r"\d+[-+*]\d+[-+]\d+=(\d+):(\d+)")
DIVISION = re.compile(r"\d+=\d+\*(\d+)\+\d+:(\d+)")


def check_line(line: str) -> bool:
    """Whether a line was an equation, with or without the digits known; asserts that it is a true one."""
    equation, _, known = line.partition(":")
    parts = equation.split("=")
    if len(parts) < 2:
        return False
    assert len({value(part) for part in parts}) == 1, line
    assert not known or COLUMN.fullmatch(line) or DIVISION.fullmatch(line), line
    return True


def check_columns(lines: list[str]) -> None:
    """Asserts that the known digits grow by those that a line found, and are in the end those of the result."""
    known = ""
    for line, following in pairwise([*lines, ""]):
        if column := COLUMN.fullmatch(line):
            last = not COLUMN.fullmatch(following)
            known = (column[1].lstrip("0") or "0" if last else column[1][-1]) + known
            assert column[2] == known, line
            if last:
                result = str(value(following.split("=")[0]))
                zeros = len(result) - len(result.rstrip("0")) if "*" in following else 0
                assert int(known) in {int(result) // 10**count for count in range(zeros + 1)}, (line, following)
                known = ""
        elif division := DIVISION.fullmatch(line):
            assert division[2].endswith(division[1]), line


def check(problem: Problem) -> None:
    lines = problem.trace.split("\n")
    equations = 0
    if problem.family == "simple_equations":  # the solution stands for the variable
        variable = problem.item.metadata["variable"]
        lines = [line.replace(variable, problem.answer) for line in lines]
    for line in lines:
        if problem.family == "leg_counting" and " legs" in line:
            assert re.fullmatch(r"\d+ [a-z ]+: \d+ legs", line)
        elif check_line(line):
            equations += 1
        elif problem.family == "basic_arithmetic":  # what is left of the formula always comes to the answer
            assert value(line) == int(problem.answer), (line, problem)
        else:
            assert problem.family == "number_sorting" and line == lines[-1]
    assert equations, problem
    check_columns(lines)
    last = lines[-1]
    match problem.family:
        case "countdown":
            assert last.partition("=")[0] == problem.answer
        case "number_sorting":
            assert re.findall(r"-?\d+", last) == re.findall(r"-?\d+(?=\.0)", problem.answer)
        case "prime_factorization":
            factors = last.partition("=")[2].split("*")
            assert " × ".join(factors) == problem.answer
            assert all(int(factor) % divisor for factor in factors for divisor in range(2, int(factor)))
        case _:
            assert last.rpartition("=")[2] == problem.answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_every_step_is_true_and_the_last_is_the_answer(family: str, level: int) -> None:
    for problem in problems(family, level, seed=11, count=200):
        check(problem)
        assert score(problem, answer_text(problem)) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_problems_have_true_traces_too(family: str) -> None:
    for problem in problems(family, 4, seed=12, count=40, split="test"):
        check(problem)
        assert score(problem, answer_text(problem)) == 1.0


def test_the_checker_finds_a_wrong_step() -> None:
    for wrong in ("7+8+0=16:6", "25=4*6+2:6", "min(3,2)=3", "80-73=8", "80-73=7:7"):
        with pytest.raises(AssertionError):
            check_line(wrong)
    right = ["7+8+0=15:5", "4+3+1=08:85", "47+38=85"]
    check_columns(right)
    for place, wrong in ((0, "7+8+0=15:4"), (1, "4+3+1=08:95"), (2, "47+48=95")):
        with pytest.raises(AssertionError):
            check_columns([*right[:place], wrong, *right[place + 1 :]])


NUMBERS = st.integers(-9999, 9999)


@given(NUMBERS, NUMBERS)
def test_columns_of_any_numbers(left: int, right: int) -> None:
    for lines, result in (
        (columns.add(left, right), left + right),
        (columns.subtract(left, right), left - right),
        (columns.multiply(left, right), left * right),
    ):
        assert all(check_line(line) for line in lines)
        assert int(lines[-1].rpartition("=")[2]) == result
        check_columns(lines)


@given(st.integers(1, 99999), st.integers(1, 999))
def test_long_division_of_any_numbers(dividend: int, divisor: int) -> None:
    lines, quotient, remainder = columns.divide(dividend, divisor)
    assert (quotient, remainder) == divmod(dividend, divisor)
    assert all(check_line(line) for line in lines)
    assert [line.partition(":")[2] for line in lines if ":" in line][-1] == str(quotient)
    assert (lines[-1] == f"{dividend}/{divisor}={quotient}") == (remainder == 0)


@pytest.mark.parametrize(("dividend", "divisor"), [(0, 3), (3, 0), (-4, 2)])
def test_division_of_what_is_not_positive_is_refused(dividend: int, divisor: int) -> None:
    with pytest.raises(ValueError, match="not a division"):
        columns.divide(dividend, divisor)


def test_a_sum_in_columns_line_by_line() -> None:
    assert columns.add(4723, 389) == [
        "3+9+0=12:2",
        "2+8+1=11:12",
        "7+3+1=11:112",
        "4+0+1=05:5112",
        "4723+389=5112",
    ]
    assert columns.subtract(23, 47) == ["23-47=-(47-23)", "7-3-0=4:4", "4-2-0=2:24", "47-23=24", "23-47=-24"]
    assert columns.multiply(47, 8) == ["7*8+0=56:6", "4*8+5=37:376", "47*8=376"]
    assert columns.divide(252, 12)[0] == [
        "12*1=12", "12*2=24", "25=12*2+1:2", "12*1=12", "12=12*1+0:21", "252/12=21",
    ]  # fmt: skip


FORMULAS = st.recursive(
    st.integers(-20, 20).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join),
        inner.map("( {} )".format),
        inner.map("-( {} )".format),
    ),
    max_leaves=5,
)


@given(FORMULAS)
def test_any_formula_is_reduced_to_its_value(formula: str) -> None:
    derivation = basic_arithmetic(Item("", "", {"expression": formula}))
    assert int(derivation.answer) == value(formula)
    for line in derivation.trace.split("\n"):
        assert check_line(line) or value(line) == int(derivation.answer)


@pytest.mark.parametrize("formula", ["( 1 + 2", "1 +", "1 2", ""])
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match=r"parenthesis|missing|goes on"):
        basic_arithmetic(Item("", "", {"expression": formula}))


def test_sheets_ask_for_steps_that_are_true() -> None:
    drawn = list(sheets(3, 60))
    assert drawn == list(sheets(3, 60)) and drawn != list(sheets(4, 60))
    seen = set()
    for question, answer in drawn:
        title, *asked = question.split("\n")
        opening, *lines, closing, results = answer.split("\n")
        assert (title, opening, closing) == ("Work out each line.", "<think>", "</think>")
        assert len(asked) == len(lines) == STEPS_A_SHEET
        for formula, line, result in zip(asked, lines, results.split(", "), strict=True):
            assert check_line(line)
            times, _, rest = result.partition(" r ")
            divisor = int(formula.split("/")[1]) if "/" in formula else 1
            assert value(formula) == Fraction(int(times)) + Fraction(int(rest or 0), divisor)
            assert int(rest or 0) < divisor
            assert not re.fullmatch(r"-?7[-+*]-?\d", formula), "held out, whatever the words"
            seen.add(re.sub(r"-?\d+", "n", formula))
    assert {"n+n+n", "n*n+n", "n/n"} <= seen


@pytest.mark.parametrize("family", FAMILIES)
def test_other_words_ask_the_same(family: str) -> None:
    """The answer is still the scorer's, the numbers are all there, and a seed gives the same words."""
    drawn = list(problems(family, 2, 5, 40))
    worded = [reworded(problem, random.Random(i)) for i, problem in enumerate(drawn)]
    assert worded == [reworded(problem, random.Random(i)) for i, problem in enumerate(drawn)]
    for before, after in zip(drawn, worded, strict=True):
        assert score(after, answer_text(after)) == 1.0
        assert (after.trace, after.answer, after.place) == (before.trace, before.answer, before.place)
        assert "{" not in after.question or before.question == after.question
        example = "2 × 2 × 3" in before.question
        numbers = re.findall(r"\d+", before.question)[: 1 if example else None]
        assert re.findall(r"\d+", after.question)[: len(numbers)] == numbers
    changed = sum(before.question != after.question for before, after in zip(drawn, worded, strict=True))
    own_words = family in ("countdown", "fraction_simplification", "leg_counting", "number_sorting")
    assert changed == 0 if own_words else changed == len(drawn)
