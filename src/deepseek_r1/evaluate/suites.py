"""The suites: problems that are made (reasoning), and questions that are read (multiple choice, numbers as answers)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deepseek_r1.data.errors import DataError
from deepseek_r1.data.tasks.families import FAMILIES, OUTSIDE, outside_problems, problems
from deepseek_r1.evaluate.files import read_objects, text_field
from deepseek_r1.evaluate.grading import LETTERS, number_in, number_score
from deepseek_r1.evaluate.question import ChoiceQuestion, Question, reasoning_question

NUMBER_ALONE = "Give the final answer as a number on a line of its own."

_NUMBERS = 'give {"question": …, "answer": "… #### 42"} in every line'
_CHOICES = 'give {"question": …, "choices": [two to 26 texts], "answer": a letter, or a place from 0} in every line'


def reasoning(families: Sequence[str], level: int, count: int, seed: int) -> list[Question]:
    """`count` problems of each family (none named: all), those of trained ones from the test split.

    Families that are never trained have no levels. Raises `ConfigError` for a family that isn't there,
    `UnsupportedError` without reasoning-gym.
    """
    found: list[Question] = []
    for family in families or (*FAMILIES, *OUTSIDE):
        drawn = (
            outside_problems(family, seed, count)
            if family in OUTSIDE
            else problems(family, level, seed, count, split="test")
        )
        found += map(reasoning_question, drawn)
    return found


def number_questions(path: Path, count: int | None) -> list[Question]:
    """The questions of a file in GSM8K's form; what stands behind the answer's `####` is expected, as a number.

    Raises `DataError`.
    """
    return [_number_question(value, number, path) for value, number in read_objects(path, count, _NUMBERS)]


def _number_question(value: dict[str, Any], number: int, path: Path) -> Question:
    place = f"{path}:{number}"
    question = text_field(value, "question", place, _NUMBERS)
    _, mark, rest = text_field(value, "answer", place, _NUMBERS).rpartition("####")
    expected = number_in(rest) if mark else None
    if expected is None:
        raise DataError(place, "answer", "has no number behind ####", remedy=_NUMBERS)
    grade = partial(number_score, expected)
    return Question("gsm8k", path.stem, str(number), f"{question}\n\n{NUMBER_ALONE}", rest.strip(), grade)


def choice_questions(path: Path, count: int | None) -> list[ChoiceQuestion]:
    """The questions of a file with choices. Raises `DataError`."""
    return [_choice_question(value, number, path) for value, number in read_objects(path, count, _CHOICES)]


def _choice_question(value: dict[str, Any], number: int, path: Path) -> ChoiceQuestion:
    place = f"{path}:{number}"
    question = text_field(value, "question", place, _CHOICES)
    choices = value.get("choices")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(place, "choices", "must be a list of two to 26 texts", remedy=_CHOICES)
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise DataError(place, f"choices[{index}]", "must be text", remedy=_CHOICES)
    answer = value.get("answer")
    if isinstance(answer, str) and len(answer.strip()) == 1:
        answer = LETTERS.find(answer.strip().upper())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(place, "answer", "names none of the choices", remedy=_CHOICES)
    return ChoiceQuestion(path.stem, str(number), question, tuple(choices), answer)
