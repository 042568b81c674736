"""The verb `train`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from deepseek_r1.config.train import TrainCommand

if TYPE_CHECKING:
    from deepseek_r1.train.run import Run

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended
_CELLS = 24
_TUNABLES = "GLIBC_TUNABLES"


def train(command: TrainCommand) -> int:
    """Train as a recipe says, going on where an earlier start of the same run came to an end."""
    config = command.resolved()
    _with_huge_pages()
    from deepseek_r1.train.run import prepare, report_data

    if command.only_data:
        print(report_data(config))
        return 0
    run = prepare(config)
    if run.data_report:
        print(run.data_report, file=sys.stderr)
    if run.resumed_at:
        print(f"going on after step {run.resumed_at} of {run.loop.steps}", file=sys.stderr)
    with _interrupts() as interrupted:
        _follow(run, interrupted)
    if not run.finished:
        print(f"interrupted after step {run.loop.step}; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    print(run.folder / "result")
    return 0


def _with_huge_pages() -> None:
    """Start again with a C library that takes memory in huge pages and keeps it: it reads this when a process starts.

    A step takes and frees gigabytes. Where the system hands them out 4 KiB at a time, that can take longer than the
    step's arithmetic (docs/LOG.md).
    """
    program = os.path.basename(sys.argv[0]) in ("deepseek-r1", "main.py")  # not a test, or somebody's own program
    if program and sys.platform == "linux" and _TUNABLES not in os.environ:
        keep = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184"
        os.environ[_TUNABLES] = f"glibc.malloc.hugetlb=1:{keep}"
        os.execv(sys.executable, [sys.executable, "-m", "deepseek_r1.cli.main", *sys.argv[1:]])


def _follow(run: Run, stop: Callable[[], bool]) -> None:
    """Train, and show every step: a bar on a terminal, JSON lines elsewhere."""
    terminal = sys.stderr.isatty()
    seconds: list[float] = []
    try:
        for line in run.train(stop):
            seconds = [*seconds[-19:], line["seconds"]]
            left = round(sum(seconds) / len(seconds) * (run.loop.steps - line["step"]))
            if terminal:
                words = _words(line, run.loop.steps, left)
                sys.stderr.write(f"\r\x1b[K{words[: shutil.get_terminal_size().columns - 1]}")
            else:
                sys.stderr.write(json.dumps({**line, "steps": run.loop.steps, "seconds_left": left}) + "\n")
            sys.stderr.flush()
    finally:
        if terminal and seconds:
            sys.stderr.write("\n")  # whatever is said next has a line of its own


def _words(line: dict[str, Any], steps: int, left: int) -> str:
    bar = "#" * (_CELLS * line["step"] // steps)
    loss = "no number" if line["loss"] is None else f"{line['loss']:.4f}"
    words = f"[{bar:<{_CELLS}}] {line['step']}/{steps} loss {loss}, {line['tokens_per_second']:.0f} tokens/s, "
    words += f"{left // 60}:{left % 60:02} left"
    return words + "".join(
        f", {name.replace('_', ' ')} {line[name]:.2f}" for name in ("reward", "pass_rate") if name in line
    )


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and a plain kill end the run between two steps, and all is saved; a second Ctrl-C ends it at once."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        with suppress(OSError):  # not through sys.stderr, which this may have interrupted
            os.write(2, b"\nending after this step; Ctrl-C again ends at once, without saving\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
