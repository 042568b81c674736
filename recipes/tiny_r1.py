"""Make the R1-shaped tiny model: DeepSeek-R1 in everything but size, trained in minutes on one core of a CPU.

    python recipes/tiny_r1.py OUT [--steps N] [--seed S] [--balance bias|auxiliary|entropy|none] [--minutes M]

OUT becomes a model directory that `deepseek-r1 serve OUT` and transformers load, with a report of what it can do and of
how evenly its experts are used. The same seed gives the same bits on the same machine. Ctrl-C or a kill loses nothing
but the last steps: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin

# isort: split
import torch

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.text.hf_tokenizer import tokenizer_from_directory
from tiny_r1_exam import examine, measure_routing
from tiny_r1_report import write_report
from tiny_r1_tokenizer import write_tokenizer
from tiny_r1_training import BALANCES, Run, Settings

SAVE_SECONDS = 30.0
INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


class Progress:
    """Where the run is: a bar on a terminal, a JSON line every 20 steps elsewhere."""

    def __init__(self, first: int, steps: int, stream: TextIO) -> None:
        self._first, self._steps, self._stream = first, steps, stream
        self._began = time.monotonic()

    def show(self, line: dict[str, Any]) -> None:
        """Tell of one step."""
        step, terminal = line["step"], self._stream.isatty()
        if not terminal and step % 20 and step != self._steps:
            return
        rate = (step - self._first) / max(1e-9, time.monotonic() - self._began)
        left = round((self._steps - step) / rate)
        if terminal:
            bar = "#" * (24 * step // self._steps)
            words = f"[{bar:<24}] {step}/{self._steps}, {rate:.2f} steps/s, {left // 60}:{left % 60:02} left"
            self._stream.write(f"\r\x1b[K{words}, loss {line['loss']:.3f}")
        else:
            fields = {name: value for name, value in line.items() if name != "utilisation"}
            self._stream.write(json.dumps(fields | {"rate": round(rate, 2), "seconds_left": left}) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the bar's line."""
        if self._stream.isatty():
            self._stream.write("\n")


def train(run: Run, minutes: float | None) -> bool:
    """Train to the end, or until the time is up or somebody interrupts; saves. Returns whether it was interrupted."""
    interrupted: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        # Between two steps, so that what is saved is whole.
        signal.signal(number, lambda signum, frame: interrupted.append(signum))
    progress = Progress(run.step, run.settings.steps, sys.stderr)
    began = time.monotonic()
    saved = began - SAVE_SECONDS  # the first step is saved too: a disk that is full should tell now
    try:
        for line in run.train(run.settings.steps):
            progress.show(line)
            now = time.monotonic()
            if interrupted or (minutes is not None and now - began > 60 * minutes):
                break
            if now - saved >= SAVE_SECONDS:
                run.save()
                saved = time.monotonic()
        run.save()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        progress.end()
    return bool(interrupted)


def make(out: Path, settings: Settings, *, minutes: float | None, problems: int) -> bool:
    """Train, save, examine and report into the folder `out`. Returns whether it came so far."""
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out)
    tokenizer = tokenizer_from_directory(out)
    run = Run(settings, tokenizer, out / "state")
    if train(run, minutes):
        print(f"interrupted after step {run.step}; the same command goes on from there", file=sys.stderr)
        return False
    save_model(run.decoder, out)
    found = measure_routing(run.decoder, tokenizer, settings.balance) | {"accuracy": examine(out, problems)}
    print(write_report(out, run, found))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the model, its report and the run's state")
    parser.add_argument("--steps", type=_positive, default=1400, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and problems (default: %(default)s)")
    parser.add_argument("--balance", choices=BALANCES, default="bias", help="how experts are kept evenly used")
    parser.add_argument("--minutes", type=float, help="stop training after so long, to go on another time")
    parser.add_argument("--problems", type=_positive, default=40, help="held-out problems per task in the examination")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # tiny products gain nothing from threads, and one thread adds in one order
    settings = Settings(options.steps, options.seed, options.balance)
    try:
        done = make(options.out, settings, minutes=options.minutes, problems=options.problems)
    except DeepSeekError as error:
        print(f"error: {error.message}\nremedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}\nremedy: name a folder that can be written", file=sys.stderr)
        return 1
    return 0 if done else INTERRUPTED


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
