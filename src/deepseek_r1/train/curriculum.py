"""Which problems a step asks: the families in turn, each at a level that follows how often it is solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.tasks.families import FAMILIES, LEVELS, problems
from deepseek_r1.data.tasks.problem import Problem

RISE, FALL = 0.8, 0.2
"""Pass rates beyond which a family goes one level up or down."""

KEEP = 0.9  # share of the mean pass rate that a step keeps
LEAST_STEPS = 5  # with problems of a family, before its level moves


class Curriculum:
    """A family's level rises when its mean pass rate is above `RISE` and falls when it is below `FALL`."""

    def __init__(self, families: Sequence[str], seed: int) -> None:
        unknown = [name for name in families if name not in FAMILIES]
        if unknown:
            raise ConfigError(f"families: {unknown[0]!r} is not trained", remedy=f"there are {', '.join(FAMILIES)}")
        self.families = tuple(families) or tuple(FAMILIES)
        self._seed = seed
        self._levels = dict.fromkeys(self.families, LEVELS[0])
        self._means = dict.fromkeys(self.families, 0.5)
        self._steps = dict.fromkeys(self.families, 0)

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        """`count` problems for a step's attempt, the same for the same arguments and levels."""
        asked: list[Problem] = []
        for index in range(count):
            number = (step * 64 + attempt) * count + index
            family = self.families[number % len(self.families)]
            seed = (self._seed * 1_000_003 + number) % (1 << 31)
            asked += problems(family, self._levels[family], seed, 1)
        return asked

    def note(self, rates: Mapping[str, float]) -> None:
        """Take in a step's pass rates by family."""
        for family, rate in rates.items():
            self._means[family] = KEEP * self._means[family] + (1 - KEEP) * rate
            self._steps[family] += 1
            step = (self._means[family] > RISE) - (self._means[family] < FALL)
            level = self._levels[family] + step
            if step and self._steps[family] >= LEAST_STEPS and level in LEVELS:
                self._levels[family], self._means[family], self._steps[family] = level, 0.5, 0

    @property
    def mean_level(self) -> float:
        """The families' mean level."""
        return sum(self._levels.values()) / len(self._levels)

    def state(self) -> dict[str, Any]:
        """Levels, means and counts."""
        return {"levels": dict(self._levels), "means": dict(self._means), "steps": dict(self._steps)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Be as the curriculum was that gave `state`. Raises `ConfigError` for one of other families."""
        if set(state["levels"]) != set(self.families):
            raise ConfigError("the run was started with other families", remedy="give those, or choose another out")
        self._levels, self._means, self._steps = (dict(state[name]) for name in ("levels", "means", "steps"))
