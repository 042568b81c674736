"""What R1-Lite's policies can do: each answers the same held-out problems, and `evaluation.json` says how they compare.

A policy's answers are kept one by one while it is asked, and as a whole (`evaluation/NAME.json`) when all are there: it
is not asked again unless its weights, the problems or the kernels are other ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deepseek_r1.cli.evaluate import AnswerProgress
from deepseek_r1.core.environment import machine_summary, package_versions
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.tasks.families import FAMILIES, OUTSIDE, outside_problems, problems
from deepseek_r1.data.tasks.problem import Problem, normalised
from deepseek_r1.evaluate.run import evaluate
from deepseek_r1.evaluate.statistics import cluster_bootstrap, wilson
from deepseek_r1.evaluate.summary import ALL
from deepseek_r1.evaluate.targets import load_target
from deepseek_r1.kernels import ops
from deepseek_r1.models.adapters import WEIGHTS_FILE
from deepseek_r1.models.locate import locate_model
from deepseek_r1.operate.runs.report import write_text
from r1_lite_runs import commit, file_digest, read_json, run_facts

RUNS = ("sft", "rl", "control")
POLICIES = ("base", *RUNS)
TRAINED_GROUP, OUTSIDE_GROUP = "trained families", "outside families"
TEST_SEED, TEST_LEVELS = 77_000, (1, 2)
EVALUATION = "evaluation.json"


def best_run(evaluation: Mapping[str, Any]) -> str | None:
    """The run that answers most of the trained families' problems right, of equals the earlier; None before one is."""
    means = {
        total["name"]: total["mean"]
        for total in evaluation["totals"]
        if (total["group"], total["level"]) == (TRAINED_GROUP, None)
    }
    examined = [name for name in RUNS if name in evaluation["runs"] and name in means]
    return max(examined, key=means.__getitem__, default=None)


@dataclass(frozen=True)
class Exam:
    """What all policies of a folder are asked alike."""

    model: str
    problems: tuple[Problem, ...]
    answer_tokens: int

    @property
    def digest(self) -> str:
        """Changes with any question or answer."""
        asked = [[problem.place, problem.question, problem.answer] for problem in self.problems]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@cache
def test_problems(count: int) -> tuple[Problem, ...]:
    """`count` held-out problems of the trained families, and `count` of those that are never trained.

    Families and levels take turns. Those whose held-out questions come to an end leave their turns to the others. No
    question is asked twice.
    """
    inside = [problems(family, level, TEST_SEED, count, split="test") for family in FAMILIES for level in TEST_LEVELS]
    outside = [outside_problems(family, TEST_SEED, count) for family in OUTSIDE]
    return (*_in_turn(inside, count), *_in_turn(outside, count))


def _in_turn(sources: Iterable[Iterable[Problem]], count: int) -> list[Problem]:
    waiting = [iter(source) for source in sources]
    found: list[Problem] = []
    asked: set[str] = set()
    while waiting and len(found) < count:
        source = waiting.pop(0)
        for problem in source:
            if normalised(problem.question) not in asked:
                asked.add(normalised(problem.question))
                found.append(problem)
                waiting.append(source)
                break
    return found


class PolicyProgress(AnswerProgress):
    """How many answers of one policy are there."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self._policy = policy

    def _show(self, line: str, fields: dict[str, Any]) -> None:
        super()._show(f"{self._policy}: {line}", {"policy": self._policy, **fields})


def examine(out: Path, exam: Exam, name: str, adapter: Path | None) -> dict[str, Any]:
    """A policy's rows and its greedy answers to all problems: those that are on file, or asked for now."""
    path = out / "evaluation" / f"{name}.json"
    weights = None if adapter is None else file_digest(adapter / WEIGHTS_FILE)
    of = {"model": exam.model, "adapter_sha256": weights, "problems": exam.digest, "path": ops.PATH}
    of["answer_tokens"] = exam.answer_tokens
    found = read_json(path)
    if found is not None and found.get("of") == of:
        return found
    progress = PolicyProgress(name)
    try:
        target = load_target(exam.model, adapter=adapter, memory=2 << 30, max_concurrent=32)
        summary = evaluate(
            target,
            exam.problems,
            temperature=0.0,
            max_tokens=exam.answer_tokens,
            out=out / "evaluation" / name,
            progress=progress.answers,
        )
    finally:
        progress.end()
    answers = [
        {
            "place": result.place,
            "family": problem.family,
            "level": problem.level,
            "question": problem.question,
            "reference": problem.answer,
            "text": result.text,
            "score": result.score,
            "truncated": result.truncated,
        }
        for problem, result in zip(exam.problems, summary.results, strict=True)
    ]
    rows = [{"name": name, **asdict(row)} for row in summary.rows if row.family != ALL]
    found = {"of": of, "rows": rows, "answers": answers}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def examine_all(out: Path, exam: Exam, seed: int, scale: float) -> dict[str, Any]:
    """Examine the base and every run that is done, write `evaluation.json`, and return what it holds.

    Raises `ConfigError` where a test question is in the training data.
    """
    _refuse_trained_questions(out, exam)
    done = {name: out / name / "result" for name in RUNS if (out / name / "result" / WEIGHTS_FILE).exists()}
    (out / "evaluation").mkdir(exist_ok=True)
    found = {name: examine(out, exam, name, done.get(name)) for name in POLICIES if name in ("base", *done)}
    answers = {name: policy["answers"] for name, policy in found.items()}
    evaluation = {
        "kind": "r1-lite-evaluation",
        "base": locate_model(exam.model).name,
        "seed": seed,
        "scale": scale,
        "answer_tokens": exam.answer_tokens,
        "rows": [row for policy in found.values() for row in policy["rows"]],
        "totals": [total for name, given in answers.items() for total in totals(name, given)],
        "differences": differences(answers["rl"], answers["control"]) if {"rl", "control"} <= answers.keys() else [],
        "runs": {name: run_facts(out / name) for name in done},
        "data": read_json(out / "data.json"),
        "path": ops.PATH,
        "machine": machine_summary(),
        "versions": package_versions(("deepseek-r1-toolkit", "torch", "reasoning-gym")),
        "commit": commit(),
    }
    write_text(out / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
    return evaluation


def group_of(answer: Mapping[str, Any]) -> str:
    """Whether an answer is to a problem of the trained families or of the outside ones."""
    return TRAINED_GROUP if answer["family"] in FAMILIES else OUTSIDE_GROUP


def totals(name: str, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pass@1 of a policy with Wilson's 95 % interval: of each group, and of the trained families' levels."""
    parts: dict[tuple[str, int | None], list[float]] = {}
    for answer in answers:
        group = group_of(answer)
        parts.setdefault((group, None), []).append(answer["score"])
        if group == TRAINED_GROUP:
            parts.setdefault((group, answer["level"]), []).append(answer["score"])
    rows = []
    for (group, level), scores in parts.items():
        right, n = math.fsum(scores), len(scores)
        low, high = wilson(right, n)
        rows.append({"name": name, "group": group, "level": level, "n": n, "mean": right / n, "low": low, "high": high})
    return rows


def differences(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pass@1 of `one` minus that of `other`, problem by problem: of each group, with its 95 % bootstrap interval.

    `better` and `worse` count the problems that only the one, or only the other, gets right. Raises `ValueError` where
    the problems are not the same.
    """
    parts: dict[str, list[float]] = {}
    for mine, theirs in zip(one, other, strict=True):
        if mine["place"] != theirs["place"]:
            raise ValueError(f"{mine['place']} is not {theirs['place']}")
        parts.setdefault(group_of(mine), []).append(mine["score"] - theirs["score"])
    rows = []
    for group, found in parts.items():
        low, high = cluster_bootstrap(found, [1] * len(found))
        counts = {"better": sum(each > 0 for each in found), "worse": sum(each < 0 for each in found)}
        mean = math.fsum(found) / len(found)
        rows.append({"group": group, "n": len(found), **counts, "mean": mean, "low": low, "high": high})
    return rows


def _refuse_trained_questions(out: Path, exam: Exam) -> None:
    tested = {normalised(problem.question) for problem in exam.problems}
    with (out / "train.jsonl").open(encoding="utf-8") as file:
        trained = {normalised(json.loads(line)["messages"][0]["content"]) for line in file}
    if both := len(tested & trained):
        raise ConfigError(
            f"{both} test questions are in {out / 'train.jsonl'}",
            remedy="ask for no more --problems than when the data were made, or take another folder",
        )
