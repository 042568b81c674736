"""More to learn from than reasoning-gym asks: its problems in other words, and sheets of single steps.

A trace fails at its weakest step. A sheet asks for eight of them and little else, where a whole problem has a long
question and lines that only copy; and a question that is worded in many ways teaches that the words don't matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from deepseek_r1.data.tasks.problem import Problem

STEPS_A_SHEET = 8

_FIRST = tuple(number for number in range(-9, 10) if abs(number) != 7)
"""Formulae that begin with 7 are what the test split asks (see `families`)."""

_OF_A_TERM = (
    "What is {expression}?", "{expression}", "{expression} = ?", "How much is {expression}?", "Compute {expression}.",
    "What do you get for {expression}?", "Can you work out {expression}?", "Tell me the value of {expression}.",
)  # fmt: skip
_PHRASES = {
    "basic_arithmetic": _OF_A_TERM,
    "chain_sum": _OF_A_TERM,
    "products": _OF_A_TERM,
    "gcd": (
        "What is the greatest common divisor of {numbers[0]} and {numbers[1]}?",
        "gcd({numbers[0]}, {numbers[1]})", "What is gcd({numbers[0]}, {numbers[1]})?",
        "Which is the largest number that divides both {numbers[0]} and {numbers[1]}?",
    ),
    "prime_factorization": ("Factor {number} into primes.", "What are the prime factors of {number}?"),
    "simple_equations": (
        "Solve {equation}.", "If {equation}, what is {variable}?", "{equation}. What is {variable}?",
        "What is {variable} if {equation}?",
    ),
}  # fmt: skip
"""By family, from the names in an item's metadata. Families that aren't here only have their own words."""


def reworded(problem: Problem, chance: random.Random) -> Problem:
    """The problem asked in other words, the answer's form unchanged; the same problem where its family has none."""
    phrases = _PHRASES.get(problem.family)
    if phrases is None:
        return problem
    return replace(problem, question=chance.choice(phrases).format(**problem.item.metadata))


def sheets(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """`count` questions with their answers, the same for the same seed: the steps that traces are made of."""
    chance = random.Random(f"sheets {seed}")
    for _ in range(count):
        steps = [chance.choice(_STEPS)(chance) for _ in range(STEPS_A_SHEET)]
        asked = "\n".join(question for question, _, _ in steps)
        lines = "\n".join(line for _, line, _ in steps)
        results = ", ".join(result for _, _, result in steps)
        yield f"Work out each line.\n{asked}", f"<think>\n{lines}\n</think>\n{results}"


_Step = tuple[str, str, str]
"""What is asked, the line that a trace has of it, and the result."""


def _equation(formula: str, result: str) -> _Step:
    return formula, f"{formula}={result}", result


def _column_of_a_sum(chance: random.Random) -> _Step:
    one, other, carry = chance.randrange(10), chance.randrange(10), chance.randrange(2)
    return _equation(f"{one}+{other}+{carry}", f"{one + other + carry:02d}")


def _column_of_a_difference(chance: random.Random) -> _Step:
    other, borrowed, result = chance.randrange(10), chance.randrange(2), chance.randrange(10)
    return _equation(f"{other + borrowed + result}-{other}-{borrowed}", str(result))


def _column_of_a_product(chance: random.Random) -> _Step:
    one, digit = chance.randrange(10), chance.randrange(2, 10)
    carry = chance.randrange(digit)
    return _equation(f"{one}*{digit}+{carry}", f"{one * digit + carry:02d}")


def _division(chance: random.Random) -> _Step:
    divisor, times = chance.randrange(2, 10), chance.randrange(1, 10)
    rest = chance.randrange(divisor)
    number = divisor * times + rest
    return f"{number}/{divisor}", f"{number}={divisor}*{times}+{rest}", f"{times} r {rest}"


def _of_digits(chance: random.Random) -> _Step:
    left, right = chance.choice(_FIRST), chance.randrange(-9, 10)
    result = {"+": left + right, "-": left - right, "*": left * right}[operator := chance.choice("+-*")]
    return _equation(f"{left}{operator}{right}", str(result))


_STEPS: tuple[Callable[[random.Random], _Step], ...] = (
    _column_of_a_sum, _column_of_a_difference, _column_of_a_product, _division, _of_digits,
)  # fmt: skip
