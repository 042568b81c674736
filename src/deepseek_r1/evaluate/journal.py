"""Results as JSON lines, one by one as they come: what was answered before a cut is not asked for again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError

FILE = "answers.jsonl"
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class Key:
    """Which answer: of which question, which sample of it, under which settings (their digest)."""

    suite: str
    family: str
    place: str
    sample: int
    settings: str

    def result(self, score: float, tokens: int, *, truncated: bool = False, text: str = "") -> Result:
        """What this answer earned."""
        return Result(self.suite, self.family, self.place, self.sample, self.settings, score, tokens, truncated, text)


@dataclass(frozen=True)
class Result(Key):
    """One answer, judged.

    `score` is 0 to 1 for an answer, and the sum of -log p in nats for a window of text. `tokens` were generated or
    scored. `text` is what was answered, "" for a window.
    """

    score: float
    tokens: int
    truncated: bool
    text: str

    @property
    def key(self) -> Key:
        """Which answer this is."""
        return Key(self.suite, self.family, self.place, self.sample, self.settings)


def settings_digest(settings: Mapping[str, Any], *question: str) -> str:
    """What an answer depends on beside its place: the settings, and the words of the question. 16 hex digits."""
    words = json.dumps([settings, *question], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class Journal:
    """The results in a folder: those that are there, and new ones, which are on file when `append` returns.

    Without a folder nothing is kept. Raises `ConfigError` where the folder can't be written or another run writes
    there, `DataError` for a line that is no result. A last line that was cut off is removed.
    """

    def __init__(self, folder: Path | None) -> None:
        self.results: dict[Key, Result] = {}
        self._file: BinaryIO | None = None
        if folder is None:
            return
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", remedy="give a folder that can be written") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(self._file, path)
        except OSError:
            self._file.close()
            raise ConfigError(f"{path}: another run writes here", remedy="wait for it, or give another --out") from None
        except DataError:
            self._file.close()
            raise

    def _read(self, file: BinaryIO, path: Path) -> None:
        file.seek(0)
        number = whole = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                break
            try:
                result = msgspec.json.decode(line, type=Result)
            except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
                raise DataError(
                    f"{path}:{number}",
                    "",
                    f"is no result: {error}",
                    remedy="remove the line, or give another --out",
                ) from None
            self.results[result.key] = result
            whole += len(line)
        file.truncate(whole)
        file.seek(0, os.SEEK_END)

    def append(self, result: Result) -> None:
        """Keep a result."""
        self.results[result.key] = result
        if self._file is not None:
            self._file.write(msgspec.json.encode(result) + b"\n")
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
