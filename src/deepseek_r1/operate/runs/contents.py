"""What a run's report says, gathered from its folder: tables, curves and samples, not yet in any form of document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deepseek_r1.data.histogram import MAX_BINS
from deepseek_r1.data.report import DataReport
from deepseek_r1.operate.runs.charts import draw, spans_decades
from deepseek_r1.operate.runs.read import DATA, Run, read_curves, read_run
from deepseek_r1.operate.runs.rollouts import RolloutIndex
from deepseek_r1.operate.runs.rows import EvaluationRow, Rollout

FIRST_SAMPLES, LAST_SAMPLES = 3, 5
"""Rollouts that a report shows of the first step and of the last one."""

MAX_SETTINGS = 400
MAX_WORDS = 500

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DrawnCurve:
    """A curve and its picture. `slug` is its name as part of a file's name, unlike all others'."""

    name: str
    slug: str
    svg: str


@dataclass(frozen=True)
class Contents:
    """The parts of a report, in their order. Empty ones are left out of it.

    `data_text` and `data_svg` are the data report's table and its picture.
    """

    title: str
    summary: Pairs
    recipe: Pairs
    data_text: str
    data_svg: str
    curves: tuple[DrawnCurve, ...]
    evaluation: tuple[tuple[str, ...], ...]
    rollouts: tuple[Rollout, ...]
    machine: Pairs
    versions: Pairs
    problems: tuple[str, ...]


EVALUATION_HEADER = ("suite", "family", "name", "problems", "samples", "mean", "95 % interval", "truncated")


def gather(folder: Path) -> Contents:
    """Read a run, and draw what there is to draw. Raises `RunError`."""
    run, curves, index = read_run(folder), read_curves(folder), RolloutIndex(folder)
    index.refresh()
    problems = list(run.problems)
    data_text, data_svg = _data(run, problems)
    if passed_over := curves.passed_over + index.passed_over:
        problems.append(f"{passed_over} lines are not as the trainer writes them, and passed over")
    if not curves.complete:
        problems.append("there are more steps than are drawn")
    slugs: set[str] = set()
    drawn = [
        DrawnCurve(name, _slug(name, slugs), draw(name, c.steps, c.values, logarithmic=spans_decades(c.values)))
        for name, c in curves.by_name.items()
    ]
    return Contents(
        title=run.name,
        summary=tuple(_summary(run, curves.step)),
        recipe=settings(run.fields.get("recipe")),
        data_text=data_text,
        data_svg=data_svg,
        curves=tuple(drawn),
        evaluation=tuple(map(evaluation_cells, run.evaluation)),
        rollouts=index.first_and_last(FIRST_SAMPLES, LAST_SAMPLES),
        machine=settings(run.fields.get("machine")),
        versions=settings(run.fields.get("versions")),
        problems=tuple(problems),
    )


def settings(value: Any) -> Pairs:
    """A tree of settings as names ("optimizer.rate") and values, at most `MAX_SETTINGS` of them."""
    pairs: list[tuple[str, str]] = []
    for name, inner in _leaves("", value):
        if len(pairs) == MAX_SETTINGS:
            pairs.append(("…", "more settings are in run.json"))
            break
        words = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
        pairs.append((name, words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"))
    return tuple(pairs)


def evaluation_cells(row: EvaluationRow) -> tuple[str, ...]:
    """A row of the evaluation table, under `EVALUATION_HEADER`. What lies from 0 to 1 is a share, in percent."""
    numbers = (row.mean, row.low, row.high)
    share = all(number is None or 0 <= number <= 1 for number in numbers)
    mean, low, high = ("?" if each is None else f"{100 * each:.1f}" if share else f"{each:.4g}" for each in numbers)
    unit = " %" if share and row.mean is not None else ""
    interval = "" if row.low is None or row.high is None else f"{low} to {high}{unit}"
    texts = (row.suite, row.family, row.name, f"{row.n:,}", f"{row.samples:,}")
    return (*texts, f"{mean}{unit}", interval, f"{row.truncated:,}")


def rollout_facts(row: Rollout) -> str:
    """What is known of a rollout besides its texts, on one line."""
    facts = [f"step {row.step:,}"]
    if row.family or row.level is not None:
        facts.append(row.family + ("" if row.level is None else f" level {row.level}"))
    facts.append("no reward" if row.reward is None else f"reward {row.reward:.4g}")
    if row.parts:
        parts = (f"{name} {'none' if value is None else f'{value:.4g}'}" for name, value in row.parts.items())
        facts[-1] += f" ({', '.join(parts)})"
    if row.advantage is not None:
        facts.append(f"advantage {row.advantage:+.4g}")
    facts.append(f"{row.tokens:,} tokens, {'finished' if row.finished else 'cut off'}")
    return ", ".join(facts)


def _summary(run: Run, step: int) -> Iterator[tuple[str, str]]:
    for name in ("kind", "model", "status", "started", "ended"):
        value = run.fields.get(name)
        if isinstance(value, str):
            yield name, value[:MAX_WORDS]
    steps = run.fields.get("steps")
    yield "step", f"{max(step, 0):,}" + (f" of {steps:,}" if type(steps) is int else "")
    digest = run.fields.get("data_digest")
    if isinstance(digest, str):
        yield "data digest", digest[:MAX_WORDS]


def _data(run: Run, problems: list[str]) -> tuple[str, str]:
    if run.data is None:
        return "", ""
    try:
        report = msgspec.convert(run.data, DataReport)
        if not 0 < len(report.histogram) <= MAX_BINS or not any(group.count > 0 for group in report.histogram):
            raise ValueError
        return report.as_text(), report.as_svg()
    except (msgspec.ValidationError, ValueError, OverflowError):
        problems.append(f"{DATA} is not a report of training data")
        return "", ""


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for inner, content in value.items():
            yield from _leaves(f"{name}.{inner}" if name else inner, content)
    elif value is not None or name:
        yield name or "value", value


def _slug(name: str, taken: set[str]) -> str:
    slug = base = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "curve"
    count = 1
    while slug in taken:
        count += 1
        slug = f"{base}-{count}"
    taken.add(slug)
    return slug
