"""What is asked, and how an answer is judged: the form that every suite's problems are brought to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from deepseek_r1.data.tasks.problem import Problem
from deepseek_r1.data.tasks.scoring import score
from deepseek_r1.evaluate.grading import LETTERS, choice_score

LETTER_ALONE = "Answer with the letter alone."


@dataclass(frozen=True)
class Question:
    """One user message, and `grade`, which gives the score (0 to 1) of a whole answer, thinking included.

    `place` tells it from the others of its suite and family, `reference` is the right answer.
    """

    suite: str
    family: str
    place: str
    prompt: str
    reference: str
    grade: Callable[[str], float] = field(repr=False, compare=False)


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its choices; `answer` is the place of the right one."""

    family: str
    place: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def listed(self) -> str:
        """The question with its choices below it, each behind its letter, and what to answer with."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.question, "", *lines, "", LETTER_ALONE])

    @property
    def generated(self) -> Question:
        """The same, to be answered in writing."""
        grade = partial(choice_score, self.answer, self.choices)
        return Question("multiple-choice", self.family, self.place, self.listed, LETTERS[self.answer], grade)


def reasoning_question(problem: Problem) -> Question:
    """A reasoning problem as it is trained: the question alone."""
    place = "/".join(map(str, problem.place))
    return Question("reasoning", problem.family, place, problem.question, problem.answer, partial(score, problem))
