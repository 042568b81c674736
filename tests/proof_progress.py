"""How a long run is shown: a bar with rate and remaining time on a terminal, JSON lines everywhere else."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

EVERY_SECONDS = 5.0
Progress = Callable[[float, str], None]
"""Told how much is done so far (not: since the last call), and a few words."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextlib.contextmanager
def open_progress(name: str, total: float, unit: str) -> Iterator[Progress]:
    """Show a run of `total` steps while the context is open."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield json_lines(name, total, unit)
        return
    columns = [TextColumn(name), BarColumn(None), MofNCompleteColumn(), TextColumn(unit), _Rate()]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[words]}")]
    with Bar(*columns, console=console, expand=True) as bar:
        task = bar.add_task(name, total=int(total), words="")
        yield lambda done, words: bar.update(task, completed=min(int(done), int(total)), words=words[:60])


def json_lines(name: str, total: float, unit: str, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A line on stderr every few seconds, and one for the last step."""
    began = clock()
    first: list[float] = []
    last = [-EVERY_SECONDS]

    def show(done: float, words: str) -> None:
        now = clock() - began
        first.append(done) if not first else None
        if now - last[0] < EVERY_SECONDS and done < total:
            return
        last[0] = now
        rate = (done - first[0]) / now if now > 0 else 0.0  # what an earlier run has done is not this run's pace
        line = {"step": name, "done": round(done, 1), "total": total, "unit": unit, "rate": round(rate, 2)}
        line["eta_seconds"] = round((total - done) / rate, 1) if rate > 0 and done < total else None
        print(json.dumps(line | {"words": words}), file=sys.stderr, flush=True)

    return show
