"""Is the final answer the number, or the choice, that was asked for? What is final, reasoning tasks decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from deepseek_r1.data.tasks.scoring import MAX_ANSWER, final_answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])-)?(?<![A-Za-z\d])"  # the 2 of m2 is none
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?:/(?P<below>\d+))?",
    re.ASCII,
)
_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]|$)")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_MARKS = re.compile(r"[*_`$€£]|\\(?![a-z])")
_BRACES = re.compile(r"\\[a-z]+|[{}]")


def number_in(text: str) -> Fraction | None:
    """The last number of a text, exactly: behind `####` where that stands; with thousands as 1,234, or as 3/4.

    None where there is none, and for a text over `MAX_ANSWER` characters.
    """
    if len(text) > MAX_ANSWER:
        return None
    found = None
    for match in _NUMBER.finditer(_plain(text.rpartition("####")[2])):
        if match["whole"] is None and match["part"] is None:
            continue
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
        if match["below"] is not None:
            if int(match["below"]) == 0:
                continue
            value /= int(match["below"])
        found = -value if match["sign"] else value
    return found


def number_score(expected: Fraction, text: str) -> float:
    """1.0 where the last number of the final answer is exactly the expected one, else 0.0."""
    answer = final_answer(text)
    return float(answer is not None and number_in(answer) == expected)


def choice_in(answer: str, choices: Sequence[str]) -> int | None:
    """The choice that a final answer names: by its whole text, or by its letter (`B`, `(b)`, `B. …`); else None."""
    plain = _plain(answer)
    for place, choice in enumerate(choices):
        if plain.rstrip(".").casefold() == _plain(choice).rstrip(".").casefold():
            return place
    match = _LETTER.match(plain)
    place = LETTERS.index(match[1].upper()) if match else len(choices)
    return place if place < len(choices) else None


def choice_score(expected: int, choices: Sequence[str], text: str) -> float:
    """1.0 where the final answer names the expected choice, else 0.0."""
    answer = final_answer(text)
    return float(answer is not None and choice_in(answer, choices) == expected)


def _plain(text: str) -> str:
    """A text without signs of currency and the marks of Markdown and LaTeX; fractions as 3/4."""
    text = _FRACTION.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-"))
    return " ".join(_BRACES.sub(" ", _MARKS.sub("", text)).split())
