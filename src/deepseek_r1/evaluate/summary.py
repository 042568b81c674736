"""From results to figures with their intervals, as data, as a file, and as a Markdown table."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepseek_r1.core.environment import machine_summary
from deepseek_r1.core.version import __version__
from deepseek_r1.evaluate.journal import Result
from deepseek_r1.evaluate.statistics import cluster_bootstrap, share_interval

ALL = "all"
"""The family of a row over all families of a suite."""

HEADER = ("suite", "family", "n", "samples", "mean", "95 %", "truncated", "tokens")


@dataclass(frozen=True)
class Row:
    """A suite's family: `n` problems with `samples` answers each, of which `truncated` were cut off.

    `mean` is pass@1, and for `perplexity` the perplexity of `n` windows; `low` and `high` bound its 95 % interval.
    `tokens` were generated or scored.
    """

    suite: str
    family: str
    n: int
    samples: int
    mean: float
    low: float
    high: float
    truncated: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """What an evaluation found: a row per suite and family, and one over all where a suite has several.

    `results` are what they sum up, in the order of the questions, the samples of one after each other.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    results: tuple[Result, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Figures and settings in values that JSON has."""
        return {
            "kind": "deepseek-evaluation",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            "machine": machine_summary(),
            "settings": dict(self.settings),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    @property
    def markdown(self) -> str:
        """The rows as a Markdown table; shares in percent."""
        lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2)), *map(_cells, self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summarise(results: Sequence[Result], settings: Mapping[str, Any]) -> Summary:
    """The summary of results, suites and families in the order of their first ones."""
    families: dict[tuple[str, str], list[Result]] = {}
    suites: dict[str, list[Result]] = {}
    for result in results:
        families.setdefault((result.suite, result.family), []).append(result)
        suites.setdefault(result.suite, []).append(result)
    rows = [_row(suite, family, part) for (suite, family), part in families.items()]
    for suite, part in suites.items():
        if sum(row.suite == suite for row in rows) > 1:
            rows.append(_row(suite, ALL, part))
    return Summary(tuple(rows), settings, tuple(results))


def write(summary: Summary, folder: Path) -> None:
    """Write `summary.json` and `summary.md`, each whole or not at all."""
    for name, text in (
        ("summary.json", json.dumps(summary.to_dict(), indent=1)),
        ("summary.md", summary.markdown),
    ):
        part = folder / f".{name}.{os.getpid()}"
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)


def _row(suite: str, family: str, results: Sequence[Result]) -> Row:
    problems: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        problems.setdefault((result.family, result.place), []).append(result)
    sums = [math.fsum(result.score for result in part) for part in problems.values()]
    tokens = sum(result.tokens for result in results)
    if suite == "perplexity":
        counts = [sum(result.tokens for result in part) for part in problems.values()]
        mean = math.exp(math.fsum(sums) / tokens)
        low, high = map(math.exp, cluster_bootstrap(sums, counts))
    else:
        counts = [len(part) for part in problems.values()]
        mean = math.fsum(total / count for total, count in zip(sums, counts, strict=True)) / len(problems)
        low, high = share_interval(sums, counts)
    truncated = sum(result.truncated for result in results)
    return Row(suite, family, len(problems), len(results) // len(problems), mean, low, high, truncated, tokens)


def _cells(row: Row) -> tuple[str, ...]:
    if row.suite == "perplexity":
        mean, bounds = f"{row.mean:.4g}", f"{row.low:.4g} to {row.high:.4g}"
    else:
        mean, bounds = f"{100 * row.mean:.1f} %", f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
    names = (row.suite, row.family.replace("|", "\\|"))
    return *names, f"{row.n}", f"{row.samples}", mean, bounds, f"{row.truncated}", f"{row.tokens}"
