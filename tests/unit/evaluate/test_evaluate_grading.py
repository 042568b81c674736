"""Which numbers and choices answers hold, and that nothing makes grading fail."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.evaluate.grading import choice_in, choice_score, number_in, number_score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", "1234"),
        ("3 + 4 = 7 apples", "7"),
        ("$-5.50", "-11/2"),
        ("-$5", "-5"),
        ("10-12", "12"),
        ("10 - 12 = -2", "-2"),
        ("\N{MINUS SIGN}7", "-7"),
        (r"\frac{3}{4}", "3/4"),
        ("3/4 cups", "3/4"),
        ("1,234,567.5", "2469135/2"),
        ("**42**.", "42"),
        (r"5\%", "5"),
        (r"\text{12 cm}", "12"),
        ("12 m2", "12"),
        (".5", "1/2"),
        ("9 #### 8", "8"),
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert number_in(text) == Fraction(number)


@pytest.mark.parametrize("text", ["", "none", "1/0", "####", "x2", "9" * 201, "٣"])
def test_no_number(text: str) -> None:
    assert number_in(text) is None


def test_numbers_are_compared_exactly_and_behind_the_thinking() -> None:
    want = Fraction(18)
    assert number_score(want, "<think>\n17\n</think>\nSo it is\n18.00 dollars") == 1.0
    assert number_score(want, r"The answer: \boxed{18}") == 1.0
    assert number_score(want, "18.0000000001") == 0.0
    assert number_score(want, "<think>\n18") == 0.0
    assert number_score(want, "18\nThat was easy.") == 0.0
    assert number_score(Fraction("0.3"), "0.1 + 0.2 = 0.3") == 1.0


CHOICES = ("A dog", "Paris", "$5")


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        ("(b)", 1),
        ("[B]", 1),
        ("B. Paris", 1),
        ("B: Paris", 1),
        ("**B**", 1),
        (r"\text{B}", 1),
        ("paris.", 1),
        ("A dog", 0),
        ("$5", 2),
        ("5", 2),
        ("A cat", None),
        ("Because", None),
        ("D", None),
        ("", None),
        ("é", None),
    ],
)
def test_the_choice_that_is_named(answer: str, place: int | None) -> None:
    assert choice_in(answer, CHOICES) == place


def test_choices_behind_the_thinking() -> None:
    assert choice_score(1, CHOICES, "<think>\nA\n</think>\nAnswer: B") == 1.0
    assert choice_score(1, CHOICES, "<think>\nB\n</think>\nA") == 0.0
    assert choice_score(1, CHOICES, "<think>\nB") == 0.0


@given(st.text(max_size=80) | st.text("0123456789-./,#$\\{}frac ", max_size=80))
def test_no_text_makes_grading_fail(text: str) -> None:
    assert number_score(Fraction(1), text) in (0.0, 1.0)
    assert choice_score(0, CHOICES, text) in (0.0, 1.0)


@given(st.fractions(-(10**9), 10**9, max_denominator=1000), st.text("abc ", max_size=5))
def test_a_number_that_is_written_is_read(number: Fraction, word: str) -> None:
    assert number_in(f"it is {number} {word}") == number
    if number.denominator == 1:
        assert number_in(f"{int(number):,} {word}") == number
