"""Reads a run's folder, also while its trainer writes there: whole lines only; what else is there is passed over."""

from __future__ import annotations

import math
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.operate.runs.rows import MAX_STEP, Evaluation, EvaluationRow, disarmed

RUN, METRICS, ROLLOUTS, DATA, EVALUATION = "run.json", "metrics.jsonl", "rollouts.jsonl", "data.json", "evaluation.json"

CHUNK_BYTES = 8 << 20
"""Bytes that `follow` gives at most, and the longest line that is read."""

MAX_JSON_BYTES = 4 << 20
MAX_METRICS_BYTES = 256 << 20
MAX_METRICS_LINE = 64 << 10
MAX_NAMES = 64
"""Curves of a run, and the longest name of one."""

MAX_VALUE = 1e300
"""Larger numbers are taken as missing: the difference of two of them would be no number."""

Kind = TypeVar("Kind")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RunError(DeepSeekError):
    """A folder that holds no run, or whose files can't be read."""


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file from byte `start` on; `next` is where to go on.

    `start` is 0 where the file is not the one any more that the asked place was in: what was read before is void.
    """

    start: int
    data: bytes
    next: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines without their ends, each with the byte of the file it begins at."""
        at = 0
        while (end := self.data.find(b"\n", at)) >= 0:
            yield self.start + at, self.data[at:end]
            at = end + 1


def follow(path: Path, offset: int = 0) -> Chunk:
    """The whole lines that a growing file has from byte `offset` (the `next` of the chunk before) on.

    A line longer than `CHUNK_BYTES` is passed over. A missing file has no lines. Raises `RunError`.
    """
    descriptor = _opened(path)
    if descriptor is None:
        return Chunk(0, b"", 0)
    try:
        size = os.fstat(descriptor).st_size
        if offset and (not 0 < offset <= size or os.pread(descriptor, 1, offset - 1) != b"\n"):
            offset = 0  # truncated to resume from an earlier step, and perhaps grown again
        data = os.pread(descriptor, CHUNK_BYTES, offset)
        end = data.rfind(b"\n") + 1
        if end or len(data) < CHUNK_BYTES:
            return Chunk(offset, data[:end], offset + end)
        return Chunk(offset, b"", _next_line(descriptor, offset + len(data)) or offset)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)


def follow_all(path: Path, most: int) -> Iterator[Chunk]:
    """All chunks that a file has now, up to about `most` bytes. Raises `RunError`."""
    chunk = follow(path)
    while True:
        yield chunk
        if chunk.next in (chunk.start, 0) or chunk.next >= most:
            return
        chunk = follow(path, chunk.next)
        if chunk.start == 0:
            return  # it was truncated while it was read: what is there now is told the next time


def _next_line(descriptor: int, at: int) -> int:
    """Where the line after the one at byte `at` begins; 0 while it has no end."""
    while block := os.pread(descriptor, CHUNK_BYTES, at):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return 0


def _opened(path: Path) -> int | None:
    """A descriptor of a regular file, None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{path}: is not a file", remedy="name the folder that the trainer wrote")
    return descriptor


def _unreadable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: can't be read: {error.strerror}", remedy="check the folder's permissions and its disk")


def read_step(line: bytes) -> dict[str, float | None] | None:
    """A line of metrics.jsonl: its step and its numbers, None for one that has no value; None for no such line."""
    if len(line) > MAX_METRICS_LINE:
        return None
    try:
        row = msgspec.json.decode(line)
    except _UNREADABLE:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        return None
    values: dict[str, float | None] = {"step": step}
    for name, value in row.items():
        if len(values) > MAX_NAMES:
            break
        if name != "step" and 0 < len(name) <= MAX_NAMES and (value is None or type(value) in (int, float)):
            values[disarmed(name)] = value if value is not None and abs(value) <= MAX_VALUE else None
    return values


@dataclass
class Curve:
    """Ascending steps, and a value at each: NaN where it has none."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def rewind(self, step: int) -> None:
        """Drop what is at `step` and after it."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()


@dataclass
class Curves:
    """The numbers of metrics.jsonl by name, in the order in which they appear. `passed_over` counts unusable lines."""

    by_name: dict[str, Curve] = field(default_factory=dict)
    step: int = -1
    passed_over: int = 0
    complete: bool = True

    def add(self, line: bytes) -> None:
        """Take one line. A step that isn't after the last one replaces what was from there on."""
        row = read_step(line)
        if row is None:
            self.passed_over += 1
            return
        step = int(row.pop("step") or 0)
        if step <= self.step:
            for curve in self.by_name.values():
                curve.rewind(step)
        self.step = step
        for name, value in row.items():
            if name in self.by_name or len(self.by_name) < MAX_NAMES:
                curve = self.by_name.setdefault(name, Curve())
                curve.steps.append(step)
                curve.values.append(math.nan if value is None else value)


def read_curves(folder: Path) -> Curves:
    """All steps of a run, of at most about `MAX_METRICS_BYTES`. Raises `RunError`."""
    curves = Curves()
    chunk = Chunk(0, b"", 0)
    for chunk in follow_all(folder / METRICS, MAX_METRICS_BYTES):
        for _, line in chunk.lines():
            curves.add(line)
    curves.complete = chunk.next < MAX_METRICS_BYTES
    return curves


@dataclass(frozen=True)
class Run:
    """What a run's folder says besides its rows. `fields` are those of run.json, `data` those of data.json.

    `written` is the time at which metrics.jsonl was written last. `problems` says which files are not as written.
    """

    folder: Path
    fields: dict[str, Any]
    data: dict[str, Any] | None
    evaluation: tuple[EvaluationRow, ...]
    written: float | None
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, harmless to show."""
        return str(disarmed(self.folder.absolute().name.encode("utf-8", "replace").decode()))


def read_run(folder: Path) -> Run:
    """Read a run's small files; missing ones are empty. Raises `RunError` for a folder that holds no run."""
    if not folder.is_dir() or not any((folder / name).exists() for name in (RUN, METRICS)):
        raise RunError(
            f"{folder}: holds no run: neither {RUN} nor {METRICS} is there",
            remedy="name the folder that the trainer writes its run to",
        )
    problems: list[str] = []
    fields = _read_json(folder / RUN, dict[str, Any], problems)
    data = _read_json(folder / DATA, dict[str, Any], problems)
    evaluation = _read_json(folder / EVALUATION, Evaluation, problems)
    try:
        written = (folder / METRICS).stat().st_mtime
    except OSError:
        written = None  # no step was made yet
    rows = tuple(evaluation.rows) if evaluation else ()
    return Run(folder, fields or {}, data, rows, written, tuple(problems))


def _read_json(path: Path, kind: type[Kind], problems: list[str]) -> Kind | None:
    """The content of a file as `kind`, its texts disarmed; None, and a problem unless it is missing, where it isn't."""
    try:
        descriptor = _opened(path)
        if descriptor is None:
            return None
        with open(descriptor, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            problems.append(f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB and not read")
            return None
        value: Kind = disarmed(msgspec.json.decode(text, type=kind))
        return value
    except RunError as error:
        problems.append(error.message)
    except _UNREADABLE as error:
        words = "nested too deeply" if isinstance(error, RecursionError) else disarmed(str(error))
        problems.append(f"{path.name} is not as the trainer writes it: {words}")
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}")
    return None
