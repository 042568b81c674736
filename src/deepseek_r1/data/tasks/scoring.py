"""Is an answer right? What stands behind a model's thinking is taken out, and reasoning-gym's scorer asked."""

from __future__ import annotations

import re

from deepseek_r1.data.tasks import gym
from deepseek_r1.data.tasks.problem import Problem

OPEN, CLOSE = "<think>", "</think>"

MAX_ANSWER = 200
"""Characters. A longer last line is no answer: scorers parse what they are given."""

_LABEL = re.compile(r"(?:the )?(?:final )?answer(?: is|\s*[:=])\s*", re.IGNORECASE)
_FORMULA = re.compile(r"[0-9+\-*/() ]+")


def score(problem: Problem, answer_text: str) -> float:
    """1.0 where the scorer of the problem's family gives the final answer exactly 1.0, else 0.0.

    Thinking that never ends has no answer. An answer over `MAX_ANSWER` characters scores 0, as does one that the
    scorer can't read.
    """
    answer = final_answer(answer_text)
    if answer is None or not _readable(problem, answer):
        return 0.0
    try:
        return float(gym.reward(problem.family, answer, problem.item) == 1.0)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return 0.0  # several scorers parse before they check


def final_answer(text: str) -> str | None:
    r"""The last line behind the thinking, or what a \boxed{} or an "Answer:" in it holds; None where there is none."""
    rest = text.rpartition(CLOSE)[2]
    if OPEN in rest:  # opened (again) and never closed
        return None
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    if not lines or len(lines[-1]) > MAX_ANSWER:
        return None
    line = lines[-1]
    at = line.rfind("\\boxed{")
    if at >= 0:
        line = _within_braces(line[at + len("\\boxed") :])
    elif label := _LABEL.match(line):
        line = line[label.end() :]
    return line.strip() or None


def _within_braces(text: str) -> str:
    """What the braces that `text` begins with hold; "" where they aren't closed."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place]
    return ""


def _readable(problem: Problem, answer: str) -> bool:
    """Whether an answer may be handed to the scorer, which evaluates formulas and forgives differences in lists."""
    if problem.family == "countdown":
        # It is evaluated as code there. Powers could take forever, and nothing but these operators is allowed.
        return _FORMULA.fullmatch(answer) is not None and "**" not in answer and "//" not in answer
    if problem.family == "number_sorting":
        # The scorer lets every number be off by one.
        given, asked = re.findall(r"-?[0-9.]+", answer), problem.item.metadata["sorted_numbers"]
        return [_number(text) for text in given] == [_number(text) for text in asked]
    return True


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
