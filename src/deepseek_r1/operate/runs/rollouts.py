"""Finds rollouts in a growing file: an index of places and of what is filtered by; texts are read when shown."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from deepseek_r1.operate.runs.read import ROLLOUTS, RunError, follow
from deepseek_r1.operate.runs.rows import Rollout, disarmed

MAX_ENTRIES = 200_000
"""Rollouts that are found at a time: the last ones of a longer file."""

MAX_FAMILIES = 200
MAX_SHOWN_BYTES = 8 << 20
"""A selection ends with the line that passes this."""

Sign = Literal["positive", "zero", "negative", "none"]


class _Entry(NamedTuple):
    place: int
    nbytes: int
    step: int
    family: str
    reward: float | None


@dataclass(frozen=True)
class Filters:
    """Which rollouts: all where nothing is said. `sign` is that of the reward, "none" for those without one."""

    family: str | None = None
    sign: Sign | None = None
    step: int | None = None

    def match(self, entry: _Entry) -> bool:
        """Whether `entry` is one of them."""
        return (
            (self.step is None or entry.step == self.step)
            and (self.family is None or entry.family == self.family)
            and (self.sign is None or sign(entry.reward) == self.sign)
        )


@dataclass(frozen=True)
class Selection:
    """`rows` by the byte of the file at which each begins, newest first; how many match, whether older ones follow.

    `newest` is the place of the newest that matches, None without any.
    """

    rows: tuple[tuple[int, Rollout], ...]
    matching: int
    more: bool
    newest: int | None


class RolloutIndex:
    """The rollouts of one run. `refresh` takes in what was written since; not for use by several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ROLLOUTS
        self._entries: deque[_Entry] = deque(maxlen=MAX_ENTRIES)
        self._next = 0
        self.families: list[str] = []
        self.passed_over = 0

    def refresh(self) -> None:
        """Read to the file's end, from its beginning where it was truncated. Raises `RunError`."""
        while True:
            chunk = follow(self._path, self._next)
            if chunk.start != self._next:
                self._forget()
            for place, line in chunk.lines():
                self._add(place, line)
            self._next = chunk.next
            if chunk.next == chunk.start:
                return

    def select(self, filters: Filters, *, before: int | None = None, limit: int) -> Selection:
        """The newest `limit` rollouts that match, of those that begin before the byte `before`. Raises `RunError`."""
        matching = [entry for entry in self._entries if filters.match(entry)]
        newest = matching[-1].place if matching else None
        older = [entry for entry in matching if before is None or entry.place < before]
        shown: list[_Entry] = []
        nbytes = 0
        for entry in older[: -limit - 1 : -1] if limit else ():
            shown.append(entry)
            nbytes += entry.nbytes
            if nbytes > MAX_SHOWN_BYTES:
                break
        return Selection(self._read(shown), len(matching), len(shown) < len(older), newest)

    def first_and_last(self, first: int, last: int) -> tuple[Rollout, ...]:
        """Samples for a report: `first` of the first step and `last` of the last one, from low rewards to high."""
        steps = [(step, list(entries)) for step, entries in groupby(self._entries, key=lambda entry: entry.step)]
        ends = [(steps[0][1], first)] if len(steps) > 1 else []
        ends += [(steps[-1][1], last)] if steps else []
        chosen = [entry for entries, count in ends for entry in _spread(entries, count)]
        return tuple(row for _, row in self._read(chosen))

    def _forget(self) -> None:
        self._entries.clear()
        self.families, self.passed_over, self._next = [], 0, 0

    def _add(self, place: int, line: bytes) -> None:
        row = _decoded(line)
        if row is None:
            self.passed_over += 1
            return
        family = row.family
        if family not in self.families and len(self.families) < MAX_FAMILIES:
            self.families.append(family)
        if family in self.families:  # one text for all of a family
            family = self.families[self.families.index(family)]
        self._entries.append(_Entry(place, len(line), row.step, family, row.reward))

    def _read(self, entries: Sequence[_Entry]) -> tuple[tuple[int, Rollout], ...]:
        if not entries:
            return ()
        rows = []
        try:
            with self._path.open("rb", buffering=0) as file:
                for entry in entries:
                    row = _decoded(os.pread(file.fileno(), entry.nbytes, entry.place))
                    if row is not None:  # truncated since the index was made
                        rows.append((entry.place, row))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise RunError(f"{self._path}: can't be read: {error.strerror}", remedy="check the disk") from None
        return tuple(rows)


def sign(reward: float | None) -> Sign:
    """What rewards are filtered by."""
    if reward is None:
        return "none"
    return "positive" if reward > 0 else "negative" if reward < 0 else "zero"


def _decoded(line: bytes) -> Rollout | None:
    try:
        return disarmed(msgspec.json.decode(line, type=Rollout))  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _spread(entries: Sequence[_Entry], count: int) -> list[_Entry]:
    """`count` entries at equal distances in the order of their rewards, the ends included."""
    ordered = sorted(entries, key=lambda entry: (entry.reward is not None, entry.reward or 0.0))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]
