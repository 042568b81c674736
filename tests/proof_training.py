"""The steps of `prove` that are about training: runs that are killed, and rollouts against the trainer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from proof_progress import Progress
from proof_steps import PRECISIONS, TESTS, state_file, write_json

KILLED_KINDS = ("sft-adapter", "sft-all", "sft-adaptive")
EARLY = 0.2
"""Share of the kills that come while the program starts."""


def kills(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """Whole runs, of three kinds in turn, each killed again and again, until `count` kills have happened.

    It goes on where an interrupted run of the same code ended.
    """
    from support.small_runs import command, killed_run, outcome, settings, words

    file = state_file("kills")
    key = {"code": code, "seed": seed}
    state: dict[str, Any] = {**key, "kills": 0, "runs": [], "differing": []}
    if file.exists():
        earlier = json.loads(file.read_text())
        if key.items() <= earlier.items() and earlier["kills"] < count:
            state = earlier
    with tempfile.TemporaryDirectory(prefix="prove") as name:
        folder = Path(name)
        wanted: dict[str, tuple[str, list[dict[str, Any]]]] = {}
        while state["kills"] < count:
            number = len(state["runs"])
            kind = KILLED_KINDS[number % len(KILLED_KINDS)]
            given = settings(kind, folder, folder)
            if kind not in wanted:
                whole = folder / f"whole-{kind}"
                subprocess.run(command(*words({**given, "out": whole})), check=True, capture_output=True)
                wanted[kind] = outcome(whole)
            out = folder / str(number)
            killed = killed_run(given, out, random.Random(f"{seed} {number}"), early=EARLY)
            found = outcome(out)
            if found != wanted[kind]:
                state["differing"].append(number)
            state["runs"].append({"kind": kind, "kills": killed, "sha256": found[0]})
            state["kills"] += killed
            write_json(file, state)
            progress(state["kills"], f"{number + 1} runs, {len(state['differing'])} differ")
    file.unlink()  # complete: the next run is a new one
    result = {name: value for name, value in state.items() if name not in key}
    same = {kind: len({run["sha256"] for run in state["runs"] if run["kind"] == kind}) for kind in KILLED_KINDS}
    return result, not state["differing"] and max(same.values()) == 1


def rollouts(
    count: int, seed: int, code: str, progress: Progress, *, model: str = "default"
) -> tuple[dict[str, Any], bool]:
    """`count` sampled tokens in each precision, half of them after an update, against another process's trainer.

    It goes on with the precision at which an interrupted run of the same code ended.
    """
    file = state_file("rollouts")
    key = {"code": code, "seed": seed, "count": count, "model": model}
    state: dict[str, Any] = {**key, "precisions": {}}
    if file.exists():
        earlier = json.loads(file.read_text())
        if key.items() <= earlier.items():
            state = earlier
    found: dict[str, Any] = state["precisions"]
    for place, precision in enumerate(PRECISIONS):
        if precision not in found:
            with tempfile.TemporaryDirectory(prefix="prove") as folder:
                words = [model, precision, str(-(-count // 2)), str(seed), folder]
                _run("sample", *words)
                found[precision] = json.loads(_run("check", *words))
            write_json(file, state)
        worst = max(found[precision][phase]["worst"] for phase in ("before", "after"))
        progress(count * (place + 1) / len(PRECISIONS), f"{precision}: largest difference {worst}")
    file.unlink()  # complete: the next run is a new one
    return {"model": model, "precisions": found}, all(_same(one, count) for one in found.values())


def _same(found: dict[str, Any], count: int) -> bool:
    """Whether nothing differs, and the rollouts were what they are meant to be."""
    phases = [found["before"], found["after"]]
    same = all(phase["worst"] == 0.0 and phase["differing"] == 0 for phase in phases)
    enough = sum(phase["tokens"] for phase in phases) >= count
    shared = all(sum(phase["hits"]) > 0 for phase in phases)
    return same and enough and shared and found["update_is_felt"]


def _run(*words: str) -> str:
    """A process of its own, ended with this one; what it printed."""
    command = [sys.executable, str(TESTS / "rollout_bits.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed, _ = process.communicate()
        finally:
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words[:3])}: ended with {process.returncode}")
    return printed
