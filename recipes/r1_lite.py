"""Make R1-Lite: a small reasoning model, from the embedded default model, on two cores of a CPU.

    python recipes/r1_lite.py OUT [--scale 1] [--seed 0] [--problems 500] [--only data|sft|rl|control|evaluate]

OUT gets the data, three runs (a cold start on traces that our own code derives, reinforcement learning from it, and as
a control more of the first in place of the second), what each can do, and the adapter. Every part goes on where it was
interrupted: the same command again. `--scale` multiplies the steps of all runs; the same scale and seed give the same
adapter on the same instruction-set path.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.data.tasks.families import FAMILIES, LEVELS, OUTSIDE, outside_problems, problems
from deepseek_r1.data.tasks.problem import Problem, answer_text, decontaminate
from deepseek_r1.evaluate.run import evaluate
from deepseek_r1.evaluate.targets import load_target

SFT_STEPS, RL_STEPS, CONTROL_STEPS = 560, 80, 380
EXAMPLES = {1: 260, 2: 260, 3: 180, 4: 60}
"""Training examples of each family by level, before what the test also asks is taken out."""

ANSWER_TOKENS = 256
TEST_SEED, TEST_LEVELS = 77_000, (1, 2)
ADAPTER = {"lora_r": 16, "lora_alpha": 32.0, "lora_targets": ["all-linear"], "lora_dropout": 0.0}
SFT = {"method": "sft", "lr": 1e-3, "batch_tokens": 2048, "max_length": 512, "warmup": 0.03, "save_every": 20}
RL = {"method": "grpo", "lr": 1e-4, "schedule": "constant", "prompts": 8, "group": 8, "answer_tokens": ANSWER_TOKENS}


def test_problems(count: int) -> list[Problem]:
    """Held-out problems of the trained families, `count` over their levels, and of those that are never trained."""
    found: list[Problem] = []
    each = -(-count // (len(FAMILIES) * len(TEST_LEVELS)))
    for family in FAMILIES:
        for level in TEST_LEVELS:
            found += problems(family, level, TEST_SEED, each, split="test")
    for family in OUTSIDE:
        found += outside_problems(family, TEST_SEED, -(-count // len(OUTSIDE)))
    return found


def write_data(path: Path, seed: int, count: int) -> dict[str, Any]:
    """The conversations to learn from, in one order; what the test asks is taken out. Returns what was done."""
    drawn = [
        problem for family in FAMILIES for level in LEVELS for problem in problems(family, level, seed, EXAMPLES[level])
    ]
    kept, removed = decontaminate(drawn, test_problems(count))
    random.Random(seed).shuffle(kept)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for problem in kept:
            turns = (("user", problem.question), ("assistant", answer_text(problem)))
            file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    partial.replace(path)
    return {"examples": len(kept), "removed_because_tested": removed}


def train(out: Path, settings: dict[str, Any]) -> Path:
    """Run `deepseek-r1 train` to its end, in a process of its own; returns the adapter's folder."""
    if not (out / "result" / "adapter_config.json").exists():
        words = [f"{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in settings.items()]
        command = [sys.executable, "-m", "deepseek_r1.cli.main", "train", *words, f"out={out}"]
        status = subprocess.run(command).returncode
        if status:
            raise SystemExit(status)
    return out / "result"


def examine(out: Path, model: str, name: str, adapter: Path | None, count: int) -> list[dict[str, Any]]:
    """What a policy can do: greedy answers to all test problems."""
    target = load_target(model, adapter=adapter, memory=2 << 30, max_concurrent=32)
    folder = out / "evaluation" / name
    folder.mkdir(parents=True, exist_ok=True)

    def tell(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(json.dumps({"event": "evaluate", "policy": name, "done": done, "total": total}), file=sys.stderr)

    summary = evaluate(
        target, test_problems(count), temperature=0.0, max_tokens=ANSWER_TOKENS, out=folder, progress=tell
    )
    return [{"name": name, **row} for row in summary.to_dict()["rows"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--scale", type=float, default=1.0, help="of all runs' steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default", help="the base (default: the embedded model)")
    parser.add_argument("--problems", type=int, default=500, help="test problems, inside and outside")
    parser.add_argument("--only", choices=("data", "sft", "rl", "control", "evaluate"), help="one part alone")
    options = parser.parse_args(arguments)
    out, wanted = options.out, options.only

    def scaled(steps: int) -> int:
        return max(1, round(steps * options.scale))

    out.mkdir(parents=True, exist_ok=True)
    data = out / "train.jsonl"
    if not data.exists():
        print(json.dumps(write_data(data, options.seed, options.problems)), file=sys.stderr)
    common = {"model": options.model, "seed": options.seed, **ADAPTER}
    learnt = {"data": str(data), **SFT, **common}
    policies: dict[str, Path | None] = {"base": None}
    if wanted in (None, "sft", "rl", "control"):
        sft = train(out / "sft", learnt | {"steps": scaled(SFT_STEPS)})
    if wanted in (None, "rl"):
        train(out / "rl", {**RL, **common, "start_from": str(sft), "steps": scaled(RL_STEPS), "stages": [1, 2]})
    if wanted in (None, "control"):
        again = {"start_from": str(sft), "seed": options.seed + 1, "steps": scaled(CONTROL_STEPS), "lr": 3e-4}
        train(out / "control", learnt | again)
    if wanted in (None, "evaluate"):
        policies |= {n: out / n / "result" for n in ("sft", "rl", "control") if (out / n / "result").exists()}
        rows = [
            row
            for name, adapter in policies.items()
            for row in examine(out, options.model, name, adapter, options.problems)
        ]
        (out / "evaluation.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        for row in rows:
            interval = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            print(f"{row['name']:8} {row['suite']:12} {row['family']:24} {interval} n={row['n']}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DeepSeekError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
