"""Writing to terminals: thinking dimmed, control characters of a model never executed, progress kept off stdout."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TextIO

EVERY_SECONDS = 5.0
"""How often the bytes of one job are told where nobody looks; a terminal is told ten times a second."""

_SAMPLES = 32  # the rate is that between the oldest and the newest of so many reports
_CELLS = 12  # width of a bar
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """`text` with the control characters (all but newline and tab) shown as pictures, so that they can't act."""
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 0x20 else "\ufffd", text)


class AnswerPrinter:
    """Prints an answer piece by piece. On a terminal the reasoning is dimmed and control characters are disarmed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._state = "start"
        self._line_ended = False  # the last piece's line: thinking usually ends its own

    def push(self, text: str, reasoning: str = "") -> None:
        """Print the next piece of reasoning, then of text."""
        self._write("reasoning", reasoning)
        self._write("text", text)
        self._stream.flush()

    def end(self) -> None:
        """End the answer's last line and the dimming."""
        self._switch("start")
        self._stream.write("\n")
        self._stream.flush()

    def _write(self, state: str, piece: str) -> None:
        if piece:
            self._switch(state)
            self._stream.write(visible(piece) if self._is_terminal else piece)
            self._line_ended = piece.endswith("\n")

    def _switch(self, state: str) -> None:
        if state == self._state:
            return
        if self._state == "reasoning":
            self._stream.write(_PLAIN if self._is_terminal else "")
            if state == "text":
                self._stream.write("\n" if self._line_ended else "\n\n")
        if state == "reasoning":
            self._stream.write(_DIM if self._is_terminal else "")
        self._state = state


class Progress:
    """How far a long job is: one line that is rewritten on a terminal, JSON lines elsewhere."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._event: str | None = None
        self._name: str | None = None
        self._shown = 0.0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def __call__(self, event: str, **fields: Any) -> None:
        """Show `event` with its fields."""
        words = " ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())
        self._show(f"{event}: {words}", {"event": event, **fields})

    def transfer(self, event: str, name: str, done: int, total: int) -> None:
        """Show that `done` of the `total` bytes of a job are there, now at the file `name`; with rate and time left.

        Calls may come as often as they like. A job that goes on where it stopped begins with what was `done` before.
        """
        now = self._clock()
        if event != self._event or (self._samples and done < self._samples[-1][1]):
            self._samples.clear()
        self._samples.append((now, done))
        pause = 0.1 if self._stream.isatty() else EVERY_SECONDS
        if (event, name) == (self._event, self._name) and done < total and now - self._shown < pause:
            return
        self._event, self._name, self._shown = event, name, now
        began, before = self._samples[0]
        rate = (done - before) / (now - began) if now > began else 0.0
        left = (total - done) / rate if rate > 0 else None
        share = done / total if total else 1.0
        words = f"{event} [{'#' * int(share * _CELLS):<{_CELLS}}] {share:4.0%} {size(done)} of {size(total)}"
        if left is not None:
            words += f", {size(rate)}/s, {int(left // 60)}:{int(left % 60):02} left"
        fields = {"file": name, "done": done, "total": total, "rate": round(rate)}
        self._show(f"{words}  {visible(name)}", {"event": event, **fields, "seconds_left": left and round(left, 1)})

    def end(self) -> None:
        """Clear the terminal's line."""
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _show(self, line: str, fields: dict[str, Any]) -> None:
        if self._stream.isatty():
            # A line that wraps could not be rewritten.
            self._stream.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._stream.write(json.dumps(fields) + "\n")
        self._stream.flush()


def size(nbytes: float) -> str:
    """Bytes as people read them: "12.3 MB", from 1000 MB on "1.23 GB"."""
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, text: tuple[str, ...] = ()) -> str:
    """A plain text table: the first column and those called `text` to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    left = [name in (header[0], *text) for name in header]

    def line(cells: tuple[str, ...]) -> str:
        columns = zip(cells, widths, left, strict=True)
        return "  ".join(f"{cell:<{width}}" if flush else f"{cell:>{width}}" for cell, width, flush in columns).rstrip()

    return "\n".join(map(line, (header, tuple("-" * width for width in widths), *rows)))
