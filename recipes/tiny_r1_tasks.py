"""The text that the R1-shaped tiny model learns from: questions with worked reasoning, made by rule and never read in.

Each task draws a question, the steps that lead to its answer, and the answer. A question is held out of training by a
checksum of its text, so that what the model is examined in was never seen, whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT = 8
"""One question in so many is held out."""


@dataclass(frozen=True)
class Problem:
    """A question, the reasoning (lines) and the answer."""

    task: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def held_out(self) -> bool:
        """Whether this question is kept for the examination."""
        return zlib.crc32(self.question.encode()) % HELD_OUT == 0


Drawn = tuple[str, list[str], str]


def draw(rng: random.Random, task: str, *, held_out: bool) -> Problem:
    """A problem of `task` from the training questions, or from those that are held out."""
    while True:
        question, steps, answer = TASKS[task](rng)
        problem = Problem(task, question, tuple(steps), answer)
        if problem.held_out == held_out:
            return problem


def add_steps(a: int, b: int) -> list[str]:
    """Addition digit by digit from the right, with the carry."""
    steps, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        total = x + y + carry
        brought = f"+{carry}" if carry else ""
        carry = total // 10
        steps.append(f"{x}+{y}{brought}={total}{', carry 1' if carry else ''}")
    return [*steps, f"so {a}+{b}={a + b}"]


def subtract_steps(a: int, b: int) -> list[str]:
    """Subtraction (a >= b) digit by digit from the right, with the borrow."""
    steps, borrow = [], 0
    width = len(str(a))
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        taken = f"-{borrow}" if borrow else ""
        short = x - y - borrow < 0
        value = x - y - borrow + 10 * short
        steps.append(f"{x + 10 * short}-{y}{taken}={value}{', borrow 1' if short else ''}")
        borrow = int(short)
    return [*steps, f"so {a}-{b}={a - b}"]


def addition(rng: random.Random) -> Drawn:
    """Sums of numbers with up to three digits."""
    a, b = _number(rng, 3), _number(rng, 3)
    asked = rng.choice(("What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}."))
    return asked.format(a=a, b=b), add_steps(a, b), str(a + b)


def subtraction(rng: random.Random) -> Drawn:
    """Differences of numbers with up to three digits, never below zero."""
    b, a = sorted((_number(rng, 3), _number(rng, 3)))
    asked = rng.choice(("What is {a} - {b}?", "{a} - {b} = ?", "Subtract {b} from {a}."))
    return asked.format(a=a, b=b), subtract_steps(a, b), str(a - b)


def comparison(rng: random.Random) -> Drawn:
    """The larger or smaller of two numbers, by length and then digit by digit from the left."""
    a = _number(rng, 3)
    b = _number(rng, 3) if rng.random() < 0.5 else a + rng.randint(-20, 20)
    if b < 0 or a == b:
        b = a + 1
    larger = rng.random() < 0.5
    word = "larger" if larger else "smaller"
    asked = rng.choice(("Which is {word}, {a} or {b}?", "Which number is {word}: {a} or {b}?"))
    one, two = str(a), str(b)
    if len(one) != len(two):
        steps = [f"{a} has {len(one)} digits, {b} has {len(two)}"]
    else:
        steps = [f"both have {len(one)} digits"]
        for x, y in zip(one, two, strict=True):
            steps.append(f"{x}={y}" if x == y else f"{x}{'>' if x > y else '<'}{y}")
            if x != y:
                break
    steps.append(f"so {max(a, b)}>{min(a, b)}")
    return asked.format(word=word, a=a, b=b), steps, str(max(a, b) if larger else min(a, b))


def sorting(rng: random.Random) -> Drawn:
    """Three or four numbers below 100 in order, by taking the smallest (or largest) that is left."""
    left = rng.sample(range(100), rng.randint(3, 4))
    down = rng.random() < 0.5
    asked = rng.choice(("Sort {numbers} in {order} order.", "Put {numbers} in {order} order."))
    question = asked.format(numbers=_listed(left), order="descending" if down else "ascending")
    ordered = sorted(left, reverse=down)
    steps = []
    for number in ordered:
        steps.append(f"{'largest' if down else 'smallest'} of {_listed(left)} is {number}")
        left.remove(number)
    return question, steps, _listed(ordered)


def counting(rng: random.Random) -> Drawn:
    """How often a letter occurs in a word, letter by letter."""
    word = _word(rng)
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice(_CONSONANTS + _VOWELS)
    asked = rng.choice(("How many times does {l} occur in {w}?", "How many {l} are in {w}?", "Count the {l} in {w}."))
    steps, count = [f"spell {word}: {' '.join(word)}"], 0
    for each in word:
        count += each == letter
        steps.append(f"{each} yes {count}" if each == letter else f"{each} no")
    return asked.format(l=f'"{letter}"', w=f'"{word}"'), steps, str(count)


def reversal(rng: random.Random) -> Drawn:
    """A word backwards, by way of its letters."""
    word = _word(rng)
    asked = rng.choice(("Reverse the word {w}.", "Write {w} backwards.", "What is {w} in reverse?"))
    steps = [f"spell {word}: {' '.join(word)}", f"backwards: {' '.join(reversed(word))}"]
    return asked.format(w=f'"{word}"'), steps, word[::-1]


def equation(rng: random.Random) -> Drawn:
    """Linear equations in x with one operation to undo."""
    if rng.random() < 0.4:
        a, x = rng.randint(2, 9), rng.randint(2, 12)
        steps = [f"x={a * x}/{a}", f"{a}*{x}={a * x}"]
        left, right = f"{a}x", a * x
    elif rng.random() < 0.5:
        x, a = _number(rng, 2), _number(rng, 2)
        steps = [f"x={x + a}-{a}", *subtract_steps(x + a, a)]
        left, right = f"x + {a}", x + a
    else:
        a, x = sorted((_number(rng, 2), _number(rng, 2)))
        steps = [f"x={x - a}+{a}", *add_steps(x - a, a)]
        left, right = f"x - {a}", x - a
    asked = rng.choice(("Solve {e}.", "Find x: {e}", "What is x if {e}?"))
    return asked.format(e=f"{left} = {right}"), steps, f"x = {x}"


def greeting(rng: random.Random) -> Drawn:
    """What somebody types first."""
    question = rng.choice(_HELLOS) + rng.choice(("", "!", ".", " there", " there!"))
    if rng.random() < 0.3:
        question = rng.choice(_ABOUT)
    steps = ["this is no problem to solve", "say what can be asked"]
    answer = "Hello! Ask me to add, subtract, compare, sort, count letters, reverse a word or solve for x."
    return question, steps, answer


TASKS: dict[str, Callable[[random.Random], Drawn]] = {
    "addition": addition,
    "subtraction": subtraction,
    "comparison": comparison,
    "sorting": sorting,
    "counting": counting,
    "reversal": reversal,
    "equation": equation,
    "greeting": greeting,
}

_HELLOS = ("Hello", "Hi", "Hey", "Good morning", "Good evening")
_ABOUT = ("What can you do?", "What can I ask?", "Who are you?", "Help", "Help me.", "How does this work?")
_CONSONANTS, _VOWELS = "bcdfghklmnprstvwz", "aeiou"


def _word(rng: random.Random) -> str:
    """A made-up word of two or three open syllables, with or without a last consonant: there are some ten million."""
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3))]
    return "".join(syllables) + rng.choice(("", rng.choice(_CONSONANTS)))


def _number(rng: random.Random, digits: int) -> int:
    """A number of up to so many digits, each length as likely as the others."""
    return rng.randrange(10 ** rng.randint(1, digits))


def _digits(number: int, width: int) -> list[int]:
    """The digits of `number`, filled up to `width` with zeros, from the right."""
    return [number // 10**place % 10 for place in range(width)]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
