"""Our training beside Hugging Face's: each side in a process of its own, in turns, and what is reported of the rounds.

A benchmark that uses this is started once more for each side, as it was itself, with `--serve` and the side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

SIDES = ("ours", "theirs")
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184"
RANK, ALPHA = 16, 32
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Round = dict[str, dict[str, float]]
"""What each side's turn gave: figures by name, among them `peak_bytes` of its process so far."""


def parser(words: str | None, result: str) -> argparse.ArgumentParser:
    """The options that every pair has; `result` names the report's file in `results/`."""
    made = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--json", type=Path, default=Path(__file__).with_name("results") / result)
    made.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    made.add_argument("--model", help=argparse.SUPPRESS)
    return made


def save_bf16(folder: str) -> None:
    """Write the default model, dequantised, as transformers reads it."""
    from deepseek_r1.config.precision import parse_precision
    from deepseek_r1.models.loading import load_decoder
    from deepseek_r1.models.locate import locate_model
    from deepseek_r1.models.saving import save_model

    save_model(load_decoder(locate_model("default"), parse_precision("bf16"), pack=False), folder)


def turns() -> Iterator[bool]:
    """In a side's process: True when its turn comes. What is done before the next one is asked for is the turn's work.

    Answers with the turn's seconds and the process's peak memory. Whatever else is printed goes to stderr from here on.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answer_turns(answers)


def answer_turns(answers: TextIO) -> Iterator[bool]:
    import resource

    for _ in sys.stdin:
        began = time.perf_counter()
        yield True
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), file=answers, flush=True)


def measure(model: str, rounds: int, figures: Callable[[float], dict[str, float]]) -> list[Round]:
    """Start both sides, let them take turns, print each round, and return them without the first, which warms up.

    `model` is the folder that both are told of; `figures` makes a turn's figures of its seconds.
    """
    both = {
        side: subprocess.Popen(
            [sys.executable, *sys.argv, "--serve", side, "--model", model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLIBC_TUNABLES": TUNABLES},
        )
        for side in SIDES
    }
    measured: list[Round] = []
    try:
        for number in range(rounds + 1):
            found: Round = {}
            for side in SIDES[:: 1 if number % 2 else -1]:
                answer = take_turn(side, both[side])
                found[side] = figures(answer["seconds"]) | {"peak_bytes": answer["peak"]}
            if number:
                measured.append(found)
                print(json.dumps(found), flush=True)
    finally:
        for process in both.values():
            process.kill()
            process.wait()
    return measured


def take_turn(side: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{side}: the process ended with {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def show(rounds: list[Round], name: str, unit: str, *, smaller_is_better: bool = False) -> None:
    """Print each side's median of a figure and peak memory, and how many times as fast ours is: median, least, most."""
    values = {side: [one[side][name] for one in rounds] for side in SIDES}
    ratios = [ours / theirs for ours, theirs in zip(*values.values(), strict=True)]
    if smaller_is_better:
        ratios = [1 / ratio for ratio in ratios]
    for side in SIDES:
        median = statistics.median(values[side])
        peak = int(max(one[side]["peak_bytes"] for one in rounds)) >> 20
        print(f"{side}: {median:.{2 if median < 100 else 0}f} {unit}, at most {peak} MiB")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def save_report(path: Path, packages: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Write the machine, the packages' versions and `fields` as JSON."""
    from deepseek_r1.core.environment import machine_summary

    report = {"machine": machine_summary(), "versions": {name: version(name) for name in packages}} | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
