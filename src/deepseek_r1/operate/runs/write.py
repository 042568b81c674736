"""What the trainer writes of its run: lines that appear whole or not at all, and that a resumed run goes on with."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from deepseek_r1.core.errors import CapacityError, ConfigError, DeepSeekError
from deepseek_r1.operate.runs.read import METRICS, ROLLOUTS, RUN, RunError, follow, read_run
from deepseek_r1.operate.runs.rows import MAX_STEP, MAX_TEXT, OnlyStep, Rollout

_BLOCK = 1 << 16


class RunWriter:
    """The files of one run in a folder: one writer at a time.

    What a killed writer left unfinished is cut off on opening. To begin a run, or to resume one: `rewind`, `begin`,
    then `step` and `rollouts` in the order of their steps, at last `finish`. Usable as a context manager, which doesn't
    finish the run.

    All methods raise `CapacityError` where the disk is full and `RunError` where the folder can't be written; the files
    then are as before the call, the run can go on, and later calls work when there is space again.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._fields: dict[str, Any] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._metrics = _LineFile(self.folder / METRICS)
            self._rollouts = _LineFile(self.folder / ROLLOUTS)
        except OSError as error:
            raise _failed(self.folder, error) from None

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, that of the checkpoint from which the run goes on; -1 drops all."""
        if type(step) is not int or not -1 <= step <= MAX_STEP:
            raise ConfigError(f"step must be an integer from -1 to {MAX_STEP}, not {step!r}")
        for file in (self._metrics, self._rollouts):
            file.rewind(step)

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Write run.json: JSON values of `fields`, the time of the start, and the status "running".

        A run that has steps already keeps the time of its first start. Raises `ConfigError` for what JSON can't hold.
        """
        started = _now()
        if self._metrics.step >= 0:
            before = read_run(self.folder).fields.get("started")
            started = before if isinstance(before, str) else started
        self._write_run({**fields, "started": started, "status": "running"})

    def step(self, fields: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl: `step`, later than the last one's, and numbers; NaN and infinity as null.

        Raises `ConfigError` for other fields, and for a step that isn't later.
        """
        row: dict[str, Any] = {"step": None}
        for name, value in fields.items():
            if value is not None and type(value) is not int and not isinstance(value, float):
                raise ConfigError(f"metric {name!r} must be a number, not {type(value).__name__}")
            row[name] = float(value) if isinstance(value, float) else value  # of a type that JSON has
        step = row["step"]
        if type(step) is not int or not self._metrics.step < step <= MAX_STEP:
            raise ConfigError(
                f"step must be an integer after {self._metrics.step}, not {step!r}",
                remedy="rewind to the checkpoint's step before going on from it",
            )
        self._metrics.append(_encoded(row), step)

    def rollouts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rollouts of one step to rollouts.jsonl, all of them or none: the fields of `Rollout`.

        What else a row has is the trainer's own and not written. Texts beyond `MAX_TEXT` characters are cut. Raises
        `ConfigError` for fields of another type, and for a step before the last one's.
        """
        lines = []
        last = self._rollouts.step
        for row in rows:
            try:
                rollout = msgspec.convert(_texts(row), Rollout)
            except msgspec.ValidationError as error:
                raise ConfigError(f"a rollout is not as it must be: {error}") from None
            if rollout.step < last:
                raise ConfigError(
                    f"a rollout of step {rollout.step} comes after one of step {last}",
                    remedy="rewind to the checkpoint's step before going on from it",
                )
            last = rollout.step
            lines.append(_encoded(rollout))
        if lines:
            self._rollouts.append(b"".join(lines), last)

    def finish(self, status: Literal["finished", "interrupted", "failed"]) -> None:
        """Write how the run that began has ended, and when."""
        if self._fields is None:
            raise ConfigError("a run that did not begin can't finish", remedy="call begin() first")
        self._write_run({**self._fields, "status": status, "ended": _now()})

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._rollouts.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_run(self, fields: dict[str, Any]) -> None:
        """Replace run.json in one rename."""
        content = msgspec.json.format(_encoded(fields), indent=1) + b"\n"
        partial = self.folder / f".{RUN}.partial"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(partial, flags, 0o666), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / RUN)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise _failed(self.folder / RUN, error) from None
        self._fields = fields


class _LineFile:
    """A file of lines in the order of their steps, made when the first comes. `step` is the last line's; -1: none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._release: weakref.finalize[..., _LineFile] | None = None
        self._descriptor = -1
        self.step = -1
        if path.exists():
            self._open()

    def append(self, data: bytes, step: int) -> None:
        """Write whole lines, the last one of `step`; what was written of them goes away where not all could be."""
        try:
            self._open()
            size = os.fstat(self._descriptor).st_size
            try:
                rest = memoryview(data)
                while rest:  # once, as long as the disk isn't full
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
        except OSError as error:
            raise _failed(self._path, error) from None
        self.step = step

    def rewind(self, step: int) -> None:
        """Truncate at the first line that is later than `step`."""
        if self.step <= step:
            return
        try:
            self._open()
            os.ftruncate(self._descriptor, self._first_after(step))
            self.step = self._last_step()
        except OSError as error:
            raise _failed(self._path, error) from None

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._release is not None:
            self._release()
            self._release = None

    def _open(self) -> None:
        if self._release is not None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o666)
        self._release = weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, self._line_start(os.fstat(self._descriptor).st_size))
        self.step = self._last_step()

    def _line_start(self, end: int) -> int:
        """Where the line that byte `end` is in begins: after the last line break before it."""
        while end > 0:
            begin = max(0, end - _BLOCK)
            found = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0

    def _last_step(self) -> int:
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            begin = self._line_start(end - 1)
            step = _step(os.pread(self._descriptor, end - begin, begin))
            if step is not None:
                return step
            end = begin
        return -1

    def _first_after(self, step: int) -> int:
        offset = 0
        while True:
            chunk = follow(self._path, offset)
            for place, line in chunk.lines():
                found = _step(line)
                if found is not None and found > step:
                    return place
            if chunk.next == chunk.start:
                return chunk.next
            offset = chunk.next


def _step(line: bytes) -> int | None:
    try:
        return msgspec.json.decode(line, type=OnlyStep).step
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with its texts of bounded length, and without what UTF-8 can't hold."""
    return {
        name: value[:MAX_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"a run's files hold JSON alone: {error}", remedy="give numbers, texts, lists, dicts"
        ) from None


def _failed(path: Path, error: OSError) -> DeepSeekError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CapacityError(
            f"{path}: the disk is full: the run's progress can't be written",
            remedy="free space: the run can go on, and be resumed from its last checkpoint",
        )
    return RunError(f"{path}: can't be written: {error.strerror}", remedy="name a folder that you can write in")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
