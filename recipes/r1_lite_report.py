"""R1-Lite's report: what the policies can do, whether rewards beat more examples, and what each run took.

One list of parts becomes report.md (with SVG files beside it) and report.html (with all of it inside).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.operate.runs.charts import draw
from deepseek_r1.operate.runs.contents import settings
from deepseek_r1.operate.runs.read import read_curves
from deepseek_r1.operate.runs.report import write_text
from r1_lite_document import Heading, Part, Picture, Quoted, Table, Words, as_html, as_markdown
from r1_lite_evaluation import EVALUATION, OUTSIDE_GROUP, POLICIES, RUNS, TRAINED_GROUP, group_of
from r1_lite_picture import draw_totals
from r1_lite_runs import read_json

TRIED: tuple[tuple[str, str], ...] = (
    (
        "a learning rate of 3e-4 that stays (seed 0; stopped after 47 of 120 steps)",
        "In training, countdown (from 39 to 68 % right at level 1) and fractions (37 to 67 %) rose; equations (46 to "
        "30 %), greatest common divisors (59 to 39 %) and leg counting at level 2 (76 to 36 %) fell; the mean stayed. "
        "What the steps' noise cost was as much as they taught: the rate falls to nothing now.",
    ),
    (
        "a learning rate of 2e-4 that stays, 8 problems a step, an entropy bonus of 0.01 (from a shorter cold start; "
        "stopped after 22 of 30 steps)",
        "No family's share of right answers moved beyond its noise. The entropy fell from 0.19 to 0.09 all the same.",
    ),
    (
        "the first full run of seed 0 (commit 6d4b5ba)",
        "From the second stage on, groups that all earned 1.1 passed for groups that differ, by the mean's rounding: "
        "silent answers were computed too, at no effect but time. Against its cold start, problem by problem: -1.6 "
        "points (-5.6 to 2.2) on trained families, +2.0 (-0.4 to 4.4) on outside ones: no gain told apart from none.",
    ),
    (
        "cold starts of a sixth of the tokens (193,000), 250 held-out problems of the trained families each",
        "Batches of 2,048 tokens 16.4 % right (12.3 to 21.5), with sheets of single steps and other words among the "
        "same number of tokens 19.2 % (14.8 to 24.5); then batches of 1,024 30.4 % (25.0 to 36.4), of 512 32.8 % "
        "(27.3 to 38.8; 20 % fewer tokens a second), of 1,024 at half the rate 19.2 %. So batches of 1,024 since.",
    ),
    (
        "rewards after a longer cold start (seed 0, commit 3d70a91): 80 steps at a rate of 2e-4 that falls",
        "Against that cold start, problem by problem: -5.6 points (-8.8 to -2.4) on trained families, +0.2 (-1.2 to "
        "1.8) on outside ones: worse. Half of the groups differed at all, at levels above the test's. A lower rate "
        "is next.",
    ),
)
"""What was tried before the settings of `r1_lite.SFT` and `r1_lite.RL`, and what came of it: rows of the report."""

GRADING = (
    "An answer is right where the family's scorer takes its last line, or what is there in a box or behind 'Answer:': "
    "the form counts too."
)

COLUMNS = ((TRAINED_GROUP, None), (TRAINED_GROUP, 1), (TRAINED_GROUP, 2), (OUTSIDE_GROUP, None))
CURVES = (("sft", "loss"), ("rl", "pass_rate"), ("rl", "reward"), ("control", "loss"))
SAMPLES = 3


def write_report(out: Path, beside: Sequence[Path] = ()) -> dict[str, Any]:
    """Write report.md, its pictures and report.html into `out`, with the totals of the folders `beside` (other seeds).

    Returns the evaluation. Raises `ConfigError` where a folder has none.
    """
    evaluation, others = read_evaluation(out), [read_evaluation(folder) for folder in beside]
    parts = list(_parts(out, evaluation, others))
    title = "R1-Lite: a small reasoning model"
    for part in parts:
        if isinstance(part, Picture):
            write_text(out / part.file, part.svg)
    write_text(out / "report.md", as_markdown(title, parts))
    write_text(out / "report.html", as_html(title, parts))
    return evaluation


def read_evaluation(out: Path) -> dict[str, Any]:
    """The content of a folder's evaluation.json. Raises `ConfigError` where there is none."""
    found = read_json(out / EVALUATION)
    if found is None:
        raise ConfigError(f"{out} has no {EVALUATION}", remedy="run r1_lite.py there first, with --only evaluate")
    return found


def verdicts(evaluation: Mapping[str, Any]) -> list[str]:
    """Whether rewards beat more examples, in a sentence for each group of families."""
    if not evaluation["differences"]:
        return ["Rewards and their control are not both examined yet: whether they beat more examples is open."]
    return [_verdict(row) for row in evaluation["differences"]]


def _verdict(row: Mapping[str, Any]) -> str:
    won = "beats" if row["low"] > 0 else "does not beat"
    also = ": it is worse" if row["high"] < 0 else ""
    return (
        f"On {row['group']}, RL {won} the SFT-only control{also}: RL minus control is "
        f"{100 * row['mean']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}, 95 %, the same "
        f"{row['n']} problems; {row['better']} are right with RL alone, {row['worse']} with the control alone)."
    )


def totals_table(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    """Pass@1 of every policy and seed, of both groups and of the trained families' levels."""
    rows = []
    for evaluation in evaluations:
        for policy in POLICIES:
            found = {
                (total["group"], total["level"]): total for total in evaluation["totals"] if total["name"] == policy
            }
            if found:
                rows.append((policy, str(evaluation["seed"]), *(share(found.get(column)) for column in COLUMNS)))
    names = (group if level is None else f"trained, level {level}" for group, level in COLUMNS)
    return Table(("policy", "seed", *names), tuple(rows))


def share(row: Mapping[str, Any] | None) -> str:
    """A row's pass@1 with its interval and the number of problems."""
    if row is None:
        return ""
    return f"{100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}, n={row['n']})"


def _parts(out: Path, evaluation: dict[str, Any], others: list[dict[str, Any]]) -> Iterator[Part]:
    every = [evaluation, *others]
    yield from map(Words, verdicts(evaluation))
    for other in others:
        yield from (Words(f"Seed {other['seed']}: {words}") for words in verdicts(other))
    yield Words(
        "base is the model that all start from, sft a cold start on derived traces, rl goes on from it by rewards, and "
        "control goes on from it with more examples for as long. Outside families are never trained or tuned on. "
        f"Greedy answers of at most {evaluation['answer_tokens']} tokens to held-out problems; pass@1, Wilson's 95 % "
        f"intervals. {GRADING}"
    )
    yield Heading("What they can do")
    yield totals_table(every)
    yield Picture("pass@1 of every policy, with 95 % intervals", "report-totals.svg", draw_totals(every))
    if TRIED:
        yield Heading("What was tried")
        yield Table(("what", "what came of it"), TRIED)
    yield Heading("By family")
    yield _families(evaluation)
    yield Heading("What each run took")
    yield _runs(evaluation)
    yield from map(Words, times(evaluation["runs"]))
    yield Heading("Curves")
    for run, name in CURVES:
        if run in evaluation["runs"] and (curve := read_curves(out / run).by_name.get(name)):
            title = f"{run}: {name.replace('_', ' ')}"
            yield Picture(title, f"report-{run}-{name.replace('_', '-')}.svg", draw(title, curve.steps, curve.values))
    yield Heading("Samples")
    for policy in POLICIES:
        for answer in samples((read_json(out / "evaluation" / f"{policy}.json") or {"answers": []})["answers"]):
            yield Words(f"{policy}, {answer['family']}, {_judged(answer)}. Right is: {answer['reference']}")
            yield Quoted(answer["question"])
            yield Quoted(answer["text"])
    yield Heading("Settings")
    facts = {
        name: evaluation[name] for name in ("base", "seed", "scale", "data", "path", "commit", "versions", "machine")
    }
    yield Table(("", ""), settings(facts | {name: run["settings"] for name, run in evaluation["runs"].items()}))


def samples(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Three answers to show: the first right and the first wrong of the trained families, the first wrong outside.

    Where there is no such one, others stand in.
    """
    wanted = ((TRAINED_GROUP, True), (TRAINED_GROUP, False), (OUTSIDE_GROUP, False))
    found: list[Mapping[str, Any]] = []
    for kind in wanted:
        found += [answer for answer in answers if (group_of(answer), answer["score"] == 1) == kind][:1]
    return [*found, *(answer for answer in answers if answer not in found)][:SAMPLES]


def _judged(answer: Mapping[str, Any]) -> str:
    return "right" if answer["score"] == 1 else "cut off" if answer["truncated"] else "wrong"


def _families(evaluation: dict[str, Any]) -> Table:
    rows = {(row["name"], row["family"]): row for row in evaluation["rows"]}
    cells = []
    for family in dict.fromkeys(row["family"] for row in evaluation["rows"]):
        group = group_of({"family": family}).removesuffix(" families")
        cells.append((family, group, *(share(rows.get((policy, family))) for policy in POLICIES)))
    return Table(("family", "", *POLICIES), tuple(cells))


def _runs(evaluation: dict[str, Any]) -> Table:
    rows = [
        (
            *(name, run["start_from"] or "base", f"{run['steps']:,}", f"{run['seconds'] / 60:.1f}", str(run["path"])),
            *(str(run["data_digest"])[:16], f"{run['adapter_bytes']:,}", run["adapter_sha256"]),
        )
        for name, run in evaluation["runs"].items()
    ]
    header = ("run", "from", "steps", "minutes", "kernels", "data digest", "adapter's bytes", "adapter's SHA-256")
    return Table(header, tuple(rows))


def times(runs: Mapping[str, Any]) -> list[str]:
    """How long both ways took, in a sentence; none before both are gone."""
    if not all(name in runs for name in RUNS):
        return []
    minutes = {name: runs[name]["seconds"] / 60 for name in RUNS}
    both = {name: minutes["sft"] + minutes[name] for name in ("rl", "control")}
    return [
        f"Minutes are those of the steps, summed up. Cold start and rewards took {both['rl']:.1f} minutes, cold start "
        f"and control {both['control']:.1f}: the control had {100 * both['control'] / both['rl']:.0f} % of the time."
    ]
