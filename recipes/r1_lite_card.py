"""R1-Lite's model card, and its publishing: the adapter with its recipe, report and card into one folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.tasks.families import FAMILIES, OUTSIDE
from deepseek_r1.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from deepseek_r1.operate.runs.as_markdown import table as markdown_table
from deepseek_r1.operate.runs.report import write_text
from r1_lite_evaluation import EVALUATION, OUTSIDE_GROUP, RUNS, TRAINED_GROUP, best_run
from r1_lite_report import GRADING, read_evaluation, times, totals_table, verdicts
from r1_lite_runs import file_digest, read_json

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PUBLISHED = Path(__file__).resolve().parents[1] / "src/deepseek_r1/models/r1_lite"
CARD, REPORT, RECIPE = "README.md", "report.md", "recipe.json"
TOO_LARGE = 10_000_000
"""Bytes from which on an adapter is not published."""

LEAST_PROBLEMS = 500
EXAMINED = ("base", "sft", "rl")
"""Policies without whose evaluation nothing is published. A control that is missing is reported as missing."""


def write_card(out: Path, evaluation: dict[str, Any], beside: Sequence[Path] = ()) -> None:
    """Write README.md with the evaluation's numbers, and with those of the folders `beside`."""
    write_text(out / CARD, card([evaluation, *map(read_evaluation, beside)]))


def card(evaluations: Sequence[dict[str, Any]]) -> str:
    """The model card of the first evaluation's adapter; the others are of other seeds."""
    evaluation = evaluations[0]
    runs = evaluation["runs"]
    table = totals_table(evaluations)
    trained = ", ".join(f"`{family}`" for family in FAMILIES)
    outside = ", ".join(f"`{family}`" for family in OUTSIDE)
    took = ", ".join(
        f"{name} {run['steps']:,} steps in {run['seconds'] / 60:.0f} minutes" for name, run in runs.items()
    )
    best = best_run(evaluation)
    digest = "not made yet" if best is None else runs[best]["adapter_sha256"]
    names = {name: f"`{name}`{', this adapter' if name == best else ''}" for name in RUNS}
    later = "" if "control" in runs else " (not run yet)"
    command = f"make r1-lite ARGS='--seed {evaluation['seed']} --scale {evaluation['scale']:g}'"
    return f"""---
base_model: {BASE}
library_name: peft
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [lora, grpo, reasoning]
---

# R1-Lite

A low-rank adapter that lets {BASE} think between `<think>` and `</think>` before it answers small arithmetic problems.
It shows a whole pipeline on two cores of a CPU; it is no general assistant.

## How it was made

1. Cold start ({names["sft"]}): supervised steps on problems whose reasoning our own code derives step by step.
2. Rewards ({names["rl"]}): GRPO from there on problems whose answers can be checked, in two stages.
3. Control ({names["control"]}): more of the first in place of the second, for as long{later}.

Published is the run that answered most problems of the trained families right. It was chosen by the very figures
below, which flatters it a little.

Base as trained on: `{evaluation["base"]}`. Took: {took or "nothing yet"}. Kernels: `{evaluation["path"]}`.
SHA-256 of `{WEIGHTS_FILE}`: `{digest}`.

Trained families: {trained}. Test problems are held out by template or by range of parameters, and none of their
questions is in the training data.

## What it can do

Pass@1 of greedy answers, 95 % intervals. {GRADING}

{markdown_table(table.header, table.rows)}

{" ".join([*verdicts(evaluation), *times(runs)])}
All families, samples and curves: `{REPORT}`; numbers: `{EVALUATION}`.

## Limits

- Never trained or tuned on, and reported as such: {outside}. Where the table shows no gain there, nothing was learnt
  that carries over.
- It was tested in reasoning-gym's words. Other words (some are trained for plain arithmetic), larger numbers and
  other languages are outside of what was tested.
- Wrong answers look as sure as right ones, and its reasoning may be wrong where its answer is right.
- Answers were tested up to {evaluation["answer_tokens"]} tokens.

## How to use it

    deepseek-r1 serve --adapter r1-lite=FOLDER

answers with it where a request's `model` is `r1-lite`. FOLDER is the one of this card; the files are PEFT's.

## How to make it again

    {command}

The same seed and scale give the same adapter, bit for bit, with the same kernels (`{evaluation["path"]}`), threads and
version of torch, from commit `{evaluation["commit"]}`. Settings: `{RECIPE}`.
"""


def publish(out: Path, to: Path) -> Path:
    """Put the best run's adapter into the folder `to`, with card, report, evaluation and settings.

    The folder appears as a whole, in place of an earlier one. Raises `ConfigError` for an adapter of 10 MB or more, one
    that is not the one evaluated, an evaluation that lacks a policy or has too few problems, a report of another
    evaluation, and a folder `to` that holds something else.
    """
    evaluation = read_evaluation(out)
    _refuse_incomplete(evaluation)
    best = best_run(evaluation) or "rl"
    result, digest = out / best / "result", evaluation["runs"][best]["adapter_sha256"]
    _refuse_other_adapter(digest, result / WEIGHTS_FILE)
    for name in (CARD, REPORT):
        path = out / name
        if not path.exists() or digest not in path.read_text(encoding="utf-8"):
            raise ConfigError(f"{path} is not of this adapter", remedy="write it first, with --only report")
    names = {CONFIG_FILE, WEIGHTS_FILE, CARD, REPORT, EVALUATION, RECIPE}
    pictures = sorted(out.glob("report-*.svg"))
    there = to.iterdir() if to.exists() else ()
    if foreign := [path for path in there if path.name not in names and path.suffix != ".svg"]:
        raise ConfigError(f"{foreign[0]} is not of this model", remedy="give another folder --to, or remove the file")
    partial, before = (to.with_name(f".{to.name}.{word}") for word in ("partial", "before"))
    for path in (partial, before):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in (result / WEIGHTS_FILE, out / CARD, out / REPORT, out / EVALUATION, *pictures):
        shutil.copyfile(path, partial / path.name)
    fields = (read_json(result / CONFIG_FILE) or {}) | {"base_model_name_or_path": BASE}
    write_text(partial / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")
    write_text(partial / RECIPE, json.dumps(_recipe(evaluation), indent=1) + "\n")
    _take_place(partial, to, before)
    return to


def _take_place(new: Path, to: Path, before: Path) -> None:
    """Rename `new` to `to`; what was there goes away once it is replaced."""
    if to.exists():
        os.replace(to, before)
    try:
        os.replace(new, to)
    except OSError:
        if before.exists():
            os.replace(before, to)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _recipe(evaluation: dict[str, Any]) -> dict[str, Any]:
    runs = {name: {"start_from": run["start_from"], **run["settings"]} for name, run in evaluation["runs"].items()}
    facts = {name: evaluation[name] for name in ("seed", "scale", "data", "commit")}
    return {"made_by": "recipes/r1_lite.py", **facts, "runs": runs}


def _refuse_incomplete(evaluation: dict[str, Any]) -> None:
    remedy = f"finish it first, with {LEAST_PROBLEMS} problems or more: --only evaluate"
    for policy in EXAMINED:
        for group in (TRAINED_GROUP, OUTSIDE_GROUP):
            found = [
                total["n"]
                for total in evaluation["totals"]
                if (total["name"], total["group"], total["level"]) == (policy, group, None)
            ]
            if not found:
                raise ConfigError(f"{policy} is not evaluated on {group}", remedy=remedy)
            if found[0] < LEAST_PROBLEMS:
                raise ConfigError(f"{policy} is evaluated on {found[0]} problems of {group} only", remedy=remedy)


def _refuse_other_adapter(digest: str, weights: Path) -> None:
    if not weights.exists() or file_digest(weights) != digest:
        raise ConfigError(f"{weights} is not the adapter that was evaluated", remedy="run --only evaluate again")
    if (size := weights.stat().st_size) >= TOO_LARGE:
        raise ConfigError(
            f"{weights} has {size:,} bytes, {TOO_LARGE:,} are too many", remedy="train an adapter of lower rank"
        )
