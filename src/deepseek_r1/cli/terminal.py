"""Writing to terminals: thinking dimmed, control characters of a model never executed, progress kept off stdout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

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

    def _switch(self, state: str) -> None:
        if state == self._state:
            return
        if self._state == "reasoning":
            self._stream.write(_PLAIN if self._is_terminal else "")
            self._stream.write("\n\n" if state == "text" else "")
        if state == "reasoning":
            self._stream.write(_DIM if self._is_terminal else "")
        self._state = state


class Progress:
    """How far a long job is: one line that is rewritten on a terminal, JSON lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: str, **fields: Any) -> None:
        """Show `event` with its fields."""
        if self._stream.isatty():
            words = " ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())
            self._stream.write(f"\r\x1b[K{event}: {words}")
        else:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Clear the terminal's line."""
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, text: tuple[str, ...] = ()) -> str:
    """A plain text table: the first column and those called `text` to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    left = [name in (header[0], *text) for name in header]

    def line(cells: tuple[str, ...]) -> str:
        columns = zip(cells, widths, left, strict=True)
        return "  ".join(f"{cell:<{width}}" if flush else f"{cell:>{width}}" for cell, width, flush in columns).rstrip()

    return "\n".join(map(line, (header, tuple("-" * width for width in widths), *rows)))
