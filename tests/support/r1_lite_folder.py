"""What the recipe of R1-Lite has made at the size of a test, read back; and answers to compute figures of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.small_model import small_model

PROBLEMS = 12
POLICIES = ("base", "sft", "rl", "control")
Evaluation = dict[str, Any]
Refused = Callable[..., str]
"""Starts the recipe with words that it must refuse with an error; returns what it said."""


def words(out: Path, models_folder: Path, *more: str) -> list[str]:
    begun = ["--model", str(small_model(models_folder)), "--scale", "0.004"]
    return [str(out), *begun, "--problems", str(PROBLEMS), *more]


def evaluation(out: Path) -> Evaluation:
    return dict(json.loads((out / "evaluation.json").read_text()))


def answers(out: Path, policy: str) -> list[dict[str, Any]]:
    return list(json.loads((out / "evaluation" / f"{policy}.json").read_text())["answers"])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scored(scores: list[int]) -> list[dict[str, Any]]:
    """Answers to problems of two trained levels, the rest to outside ones."""
    kinds = [("gcd", 1), ("gcd", 2), ("letter_counting", 0)]
    return [
        {"place": str(place), "family": kinds[place % 3][0], "level": kinds[place % 3][1], "score": float(score)}
        for place, score in enumerate(scores)
    ]
