"""The families that are trained: how hard each level is, what is held out of training, and who derives the trace.

Four families of reasoning-gym are never trained: they are for evaluation from outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.core.registry import nearest
from deepseek_r1.data.tasks import countdown, expressions, gym, traces
from deepseek_r1.data.tasks.item import Derivation, Item
from deepseek_r1.data.tasks.problem import Place, Problem

OUTSIDE = ("calendar_arithmetic", "family_relationships", "letter_counting", "number_sequence")
"""Families that are never trained. Their problems have level 0, reasoning-gym's own settings, and no trace."""

LEVELS = (1, 2, 3, 4)

Split = Literal["train", "test"]

MAX_IDLE = 5000
"""Items drawn in a row without a new problem after which a split counts as exhausted."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A trained family.

    `levels` are reasoning-gym's settings for levels 1 to 4. `derive` gives an item's trace and answer. Items
    where `held_out(metadata)` holds, which `held_out_words` describe, make the test split and are never trained.
    """

    levels: tuple[Settings, Settings, Settings, Settings]
    derive: Callable[[Item], Derivation]
    held_out: Callable[[Mapping[str, Any]], bool]
    held_out_words: str


def _begins_with_7(formula: object) -> bool:
    return str(formula).lstrip("-( ").startswith("7")


def _ends_in(number: object, digits: str) -> bool:
    return str(number)[-1] in digits


def _range(name: str, least: int, most: int) -> Settings:
    return {f"min_{name}": least, f"max_{name}": most}


def _sums(terms: tuple[int, int], digits: tuple[int, int]) -> Settings:
    return _range("terms", *terms) | _range("digits", *digits)


def _arithmetic(terms: tuple[int, int], digits: int, operators: str = "+-*") -> Settings:
    # Without "/": reasoning-gym rounds inexact divisions down, which no reader of the question would guess.
    return _sums(terms, (1, digits)) | {"operators": list(operators)}


def _equation(most: int, terms: int, operators: str) -> Settings:
    # "*" only gives the variable a coefficient: with a weight it would multiply whole terms.
    weights = [0.5, 0.5, 0.0][: len(operators)]
    return _range("terms", 2, terms) | _range("value", 1, most) | {"operators": list(operators),
                                                                  "operators_weights": weights}  # fmt: skip


def _fractions(value: int, factor: int) -> Settings:
    return _range("value", 1, value) | _range("factor", 2, factor)


def _legs(animals: int, most: int) -> Settings:
    return _range("animals", max(1, animals - 1), animals) | _range("instances", 1, most)


def _sorting(count: tuple[int, int], least: float) -> Settings:
    return _range("numbers", *count) | {"max_decimals": 0, "min_value": least, "max_value": 99.0}


def _countdown(count: int, value: int, target: int, operators: str) -> Settings:
    numbers = _range("numbers", count, count) | _range("value", 1, value) | _range("target", 1, target)
    return numbers | {"operators": list(operators)}


FAMILIES: Mapping[str, Family] = {
    "basic_arithmetic": Family(
        (_arithmetic((2, 2), 1), _arithmetic((3, 3), 1), _arithmetic((3, 4), 1), _arithmetic((3, 3), 2, "+-")),
        expressions.basic_arithmetic,
        lambda metadata: _begins_with_7(metadata["expression"]),
        "the first number begins with 7",
    ),
    "chain_sum": Family(
        (_sums((2, 2), (1, 2)), _sums((2, 3), (1, 2)), _sums((2, 3), (2, 3)), _sums((3, 3), (2, 3))),
        traces.chain_sum,
        lambda metadata: _begins_with_7(metadata["expression"]),
        "the first number begins with 7",
    ),
    "countdown": Family(
        (_countdown(2, 9, 81, "+-*"), _countdown(3, 20, 60, "+-"), _countdown(3, 9, 99, "+-*"),
         _countdown(4, 20, 60, "+-")),
        countdown.countdown,
        lambda metadata: _ends_in(metadata["target"], "7"),
        "the target ends in 7",
    ),
    "fraction_simplification": Family(
        (_fractions(5, 5), _fractions(9, 5), _fractions(9, 9), _fractions(12, 9)),
        traces.fraction_simplification,
        lambda metadata: metadata["style"] == "latex_dfrac",
        r"the fraction is written with \dfrac",
    ),
    "gcd": Family(
        (_range("value", 1, 20), _range("value", 1, 40), _range("value", 1, 60), _range("value", 1, 100)),
        traces.gcd,
        lambda metadata: _ends_in(metadata["numbers"][0], "4"),
        "the first number ends in 4",
    ),
    "leg_counting": Family(
        (_legs(1, 9), _legs(2, 9), _legs(3, 9), _legs(3, 12)),
        traces.leg_counting,
        lambda metadata: next(iter(metadata["animals"].values())) == 7,
        "there are 7 of the first animal",
    ),
    "number_sorting": Family(
        (_sorting((3, 3), 0.0), _sorting((3, 4), 0.0), _sorting((4, 5), -99.0), _sorting((5, 6), -99.0)),
        traces.number_sorting,
        lambda metadata: _begins_with_7(metadata["original_numbers"][0]),
        "the first number begins with 7",
    ),
    "prime_factorization": Family(
        (_range("value", 2, 30), _range("value", 2, 60), _range("value", 2, 90), _range("value", 2, 120)),
        traces.prime_factorization,
        lambda metadata: _ends_in(metadata["number"], "49"),
        "the number ends in 4 or 9",
    ),
    "products": Family(
        (_sums((2, 2), (1, 1)), _sums((3, 3), (1, 1)), _sums((2, 4), (1, 1)), _sums((2, 2), (2, 2))),
        traces.products,
        lambda metadata: _begins_with_7(metadata["expression"]),
        "the first number begins with 7",
    ),
    "simple_equations": Family(
        (_equation(20, 2, "+-"), _equation(9, 2, "+-*"), _equation(9, 3, "+-*"), _equation(20, 3, "+-*")),
        expressions.simple_equations,
        lambda metadata: _begins_with_7(str(metadata["equation"]).split("= ")[1]),
        "the right side begins with 7",
    ),
}  # fmt: skip
"""By reasoning-gym's name. All levels of a family ask in the same words."""


def problem_at(place: Place) -> Problem | None:
    """The problem at a place, the same every time; None where reasoning-gym has none there.

    Raises `ConfigError` for a family, a level, a seed or an index that does not exist.
    """
    family, level, seed, index = place
    if family not in FAMILIES and family not in OUTSIDE:
        raise ConfigError(
            f"family {family!r} is not known{nearest(family, [*FAMILIES, *OUTSIDE])}",
            remedy=f"trained: {', '.join(FAMILIES)}; for evaluation: {', '.join(OUTSIDE)}",
        )
    levels = (0,) if family in OUTSIDE else LEVELS
    if level not in levels:
        raise ConfigError(f"{family} has no level {level!r}", remedy=f"levels: {', '.join(map(str, levels))}")
    if seed < 0 or index < 0:
        raise ConfigError(f"{family}: seed {seed} or index {index} is negative", remedy="give numbers from 0 up")
    trained = FAMILIES.get(family)
    settings = json.dumps(trained.levels[level - 1]) if trained else "{}"
    item = gym.item(family, settings, (level, seed), index)
    if item is None:
        return None
    derivation = trained.derive(item) if trained else Derivation("", item.answer)
    return Problem(family, level, item.question, derivation.answer, derivation.trace, place, item)


def problems(family: str, level: int, seed: int, count: int, split: Split = "train") -> Iterator[Problem]:
    """Up to `count` problems of a trained family and level (1 to 4), the same for the same arguments.

    The test split holds what `held_out` says, each question once, and may end before `count` where there are no more.
    Raises `ConfigError` for a family that isn't trained, a level or a split that doesn't exist.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"family {family!r} is not trained{nearest(family, list(FAMILIES))}",
            remedy=f"trained: {', '.join(FAMILIES)}",
        )
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} does not exist", remedy="splits: train, test")
    return _drawn(family, level, seed, count, held_out=split == "test")


def outside_problems(family: str, seed: int, count: int) -> Iterator[Problem]:
    """`count` problems of a family that is kept for evaluation, without traces. Raises `ConfigError` for another."""
    if family not in OUTSIDE:
        raise ConfigError(
            f"family {family!r} is not kept for evaluation{nearest(family, list(OUTSIDE))}",
            remedy=f"one of: {', '.join(OUTSIDE)}",
        )
    found = (problem_at((family, 0, seed, index)) for index in range(count))
    return (problem for problem in found if problem is not None)


def describe() -> list[dict[str, Any]]:
    """A row for each trained family: its name, reasoning-gym's settings by level, and what is held out."""
    return [
        {"family": name, "levels": dict(zip(LEVELS, family.levels, strict=True)), "held_out": family.held_out_words}
        for name, family in FAMILIES.items()
    ]


def _drawn(family: str, level: int, seed: int, count: int, *, held_out: bool) -> Iterator[Problem]:
    asked: set[str] = set()
    index = idle = found = 0
    while found < count and idle < MAX_IDLE:
        problem = problem_at((family, level, seed, index))
        index, idle = index + 1, idle + 1
        if problem is None or FAMILIES[family].held_out(problem.item.metadata) != held_out:
            continue
        if held_out and problem.question in asked:
            continue
        asked.add(problem.question)
        idle, found = 0, found + 1
        yield problem
