"""A problem with its trace, as training and evaluation see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from deepseek_r1.data.tasks.item import Item

Place = tuple[str, int, int, int]
"""Where a problem comes from: family, level, seed, index. `families.problem_at` makes the same problem of it again."""


@dataclass(frozen=True)
class Problem:
    """A question, the answer in a form that the family's scorer accepts, and the steps that lead to it.

    `trace` is empty and `level` 0 for the families that are kept for evaluation. `item` is what the scorer needs.
    """

    family: str
    level: int
    question: str
    answer: str
    trace: str
    place: Place
    item: Item = field(repr=False, compare=False)


def answer_text(problem: Problem) -> str:
    """What a model should say to the question: the trace within its tags, then the answer on a line of its own."""
    return f"<think>\n{problem.trace}\n</think>\n{problem.answer}"


def normalised(question: str) -> str:
    """A question without what makes no difference to its content: case, and the amount and kind of white space."""
    return " ".join(question.casefold().split())


def decontaminate(train: Iterable[Problem], test: Iterable[Problem]) -> tuple[list[Problem], int]:
    """The problems of `train` whose normalised question is none of `test`, and how many were removed."""
    asked = {normalised(problem.question) for problem in test}
    problems: Sequence[Problem] = list(train)
    kept = [problem for problem in problems if normalised(problem.question) not in asked]
    return kept, len(problems) - len(kept)
