"""Make R1-Lite: a small reasoning model, from the embedded default model, on two cores of a CPU.

    python recipes/r1_lite.py OUT [--scale 1] [--seed 0] [--problems 500] [--only PART] [--beside OTHER_OUT]

OUT gets the data, three runs (a cold start on traces that our own code derives, reinforcement learning from it, and as
a control more of the first in place of the second), what each can do, a report and a model card. Every part goes on
where it was interrupted: the same command again. `--scale` multiplies the steps of all runs; the same scale and seed
give the same adapter on the same instruction-set path. `--only publish` then puts the adapter into the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError, DeepSeekError
from deepseek_r1.data.tasks.families import FAMILIES, LEVELS, problems
from deepseek_r1.data.tasks.practice import reworded, sheets
from deepseek_r1.data.tasks.problem import answer_text, decontaminate
from deepseek_r1.operate.runs.report import write_text
from r1_lite_card import PUBLISHED, publish, write_card
from r1_lite_evaluation import Exam, examine_all, test_problems
from r1_lite_report import share, verdicts, write_report
from r1_lite_runs import read_json

SFT_STEPS, RL_STEPS, CONTROL_STEPS = 1200, 80, 840
EXAMPLES = {1: 260, 2: 260, 3: 180, 4: 60}
"""Training examples of each family by level, before what the test also asks is taken out."""

SHEETS, REWORDED = 1500, 0.5
"""Sheets of single steps beside them, and how often a family that can be asked in other words is."""

ANSWER_TOKENS = 256
ADAPTER = {"lora_r": 16, "lora_alpha": 32.0, "lora_targets": ["all-linear"], "lora_dropout": 0.0}
SFT = {"method": "sft", "lr": 1e-3, "batch_tokens": 1024, "max_length": 512, "warmup": 0.03, "save_every": 40}
RL = {
    "method": "grpo", "lr": 5e-5, "warmup": 0.05, "prompts": 16, "group": 8, "most_rounds": 1,
    "entropy_weight": 0.0, "answer_tokens": ANSWER_TOKENS, "save_every": 10,
}  # fmt: skip


PARTS = ("data", "sft", "rl", "control", "evaluate", "report", "publish")
BEGUN_WITH = {"model": "default", "seed": 0, "scale": 1.0}
"""What a folder keeps to, by the names of the options, and what it begins with where they aren't given."""

MAX_SCALE = 1000.0
INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def write_data(path: Path, seed: int, count: int) -> None:
    """The conversations to learn from, in one order; what the test asks is taken out. data.json says what was done."""
    drawn = [
        problem for family in FAMILIES for level in LEVELS for problem in problems(family, level, seed, EXAMPLES[level])
    ]
    chance = random.Random(seed)
    worded = [reworded(problem, chance) if chance.random() < REWORDED else problem for problem in drawn]
    kept, removed = decontaminate(worded, test_problems(count))
    pairs = [(problem.question, answer_text(problem)) for problem in kept] + list(sheets(seed, SHEETS))
    chance.shuffle(pairs)
    lines = []
    for question, answer in pairs:
        turns = (("user", question), ("assistant", answer))
        lines.append(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    text = "".join(lines)
    done = {"examples": len(pairs), "sheets_of_steps": SHEETS, "removed_because_tested": removed}
    done |= {"drawn_of_each_family_by_level": EXAMPLES, "share_asked_in_other_words": REWORDED}
    done["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    write_text(path.with_name("data.json"), json.dumps(done) + "\n")
    write_text(path, text)


def train(out: Path, settings: dict[str, Any]) -> Path:
    """Run `deepseek-r1 train` to its end, in a process of its own; returns the adapter's folder.

    Ends this program with the training's status where that doesn't come to its end. Raises `ConfigError` where a run
    of other settings has.
    """
    if (out / "result" / "adapter_config.json").exists():
        before = read_json(out / "recipe.json") or {}
        for name, value in settings.items():
            if name not in ("data", "start_from") and name in before and before[name] != value:
                raise ConfigError(
                    f"{out} holds a run with {name}={before[name]!r}, not {value!r}", remedy="choose another folder"
                )
        return out / "result"
    words = [f"{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in settings.items()]
    command = [sys.executable, "-m", "deepseek_r1.cli.main", "train", *words, f"out={out}"]
    with subprocess.Popen(command) as process:
        # Whoever ends this program ends the training, which saves first. A terminal tells it of Ctrl-C itself.
        before_this = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            while process.returncode is None:
                with suppress(KeyboardInterrupt):
                    process.wait()
        finally:
            signal.signal(signal.SIGTERM, before_this)
    if process.returncode < 0:
        print(f"the training was ended by signal {-process.returncode}; the same command goes on", file=sys.stderr)
    if process.returncode:
        raise SystemExit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return out / "result"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for all of it")
    parser.add_argument("--scale", type=_positive, help="of all runs' steps (default: what OUT was begun with, else 1)")
    parser.add_argument("--seed", type=int, help="of data and runs (default: what OUT was begun with, else 0)")
    parser.add_argument("--model", help="the base (default: what OUT was begun with, else the embedded model)")
    parser.add_argument(
        "--problems", type=_count, default=500, help="test problems inside, and as many outside (default: %(default)s)"
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone; without it all but publish")
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="OTHER_OUT", help="report another seed's totals too"
    )
    parser.add_argument("--to", type=Path, default=PUBLISHED, help="where to publish (default: the package)")
    options = parser.parse_args(arguments)
    try:
        make(options)
    except DeepSeekError as error:
        print(f"error: {error.message}\nremedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}\nremedy: name a folder that can be written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    return 0


def make(options: argparse.Namespace) -> None:
    """The parts that are wanted, in their order; each does only what isn't done yet."""
    out: Path = options.out
    wanted = PARTS[:-1] if options.only is None else (options.only,)
    if set(wanted) - {"report", "publish"}:
        out.mkdir(parents=True, exist_ok=True)
        learn(out, wanted, begin(out, options), options.problems)
    if "report" in wanted:
        evaluation = write_report(out, options.beside)
        write_card(out, evaluation, options.beside)
        print(*verdicts(evaluation), out / "report.html", sep="\n")
    if "publish" in wanted:
        print(publish(out, options.to))


def learn(out: Path, wanted: Sequence[str], begun: dict[str, Any], count: int) -> None:
    """Data, runs and evaluation."""
    model, seed, scale = begun["model"], begun["seed"], begun["scale"]
    data = out / "train.jsonl"
    if not data.exists():
        write_data(data, seed, count)
    common = {"model": model, "seed": seed, **ADAPTER}
    learnt = {"data": str(data), **SFT, **common}
    if {"sft", "rl", "control"} & set(wanted):
        sft = train(out / "sft", learnt | {"steps": scaled(SFT_STEPS, scale)})
    if "rl" in wanted:
        settings = {"start_from": str(sft), "steps": scaled(RL_STEPS, scale), "stages": [1, 2]}
        train(out / "rl", RL | common | settings)
    if "control" in wanted:
        again = {"start_from": str(sft), "seed": seed + 1, "steps": scaled(CONTROL_STEPS, scale), "lr": 3e-4}
        train(out / "control", learnt | again)
    if "evaluate" in wanted:
        found = examine_all(out, Exam(model, test_problems(count), ANSWER_TOKENS), seed, scale)
        for total in found["totals"]:
            level = "" if total["level"] is None else f" level {total['level']}"
            print(f"{total['name']:8} {total['group'] + level:24} {share(total)}")


def begin(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the folder was begun with, kept there from now on. Raises `ConfigError` for options that say otherwise."""
    path = out / "settings.json"
    before = read_json(path)
    given = {name: getattr(options, name) for name in BEGUN_WITH if getattr(options, name) is not None}
    if before is None:
        before = BEGUN_WITH | given
        write_text(path, json.dumps(before) + "\n")
    for name, value in given.items():
        if before[name] != value:
            raise ConfigError(f"{out} was begun with --{name} {before[name]}, not {value}", remedy="choose another OUT")
    return before


def scaled(steps: int, scale: float) -> int:
    """Steps at a scale, one at least."""
    return max(1, round(steps * scale))


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number <= MAX_SCALE:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, and at most {MAX_SCALE:g}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
