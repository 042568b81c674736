"""Runs what is claimed at full count and writes docs/proof/NAME.json. `make prove` calls it.

    python tests/prove.py                    all steps, those that are proven for this code left out
    python tests/prove.py soak --again       one step, whatever was proven before
    python tests/prove.py schedules --count 30 --out /tmp/proof

A proof holds for the code it was made with (source, tests, pinned versions), not for the documents beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import proof_steps
import proof_training
from deepseek_r1.core.environment import machine_summary, package_versions
from proof_progress import Progress, open_progress

ROOT = Path(__file__).resolve().parent.parent
CODE = ("src", "csrc", "tests", "pyproject.toml", "constraints.txt")
PACKAGES = ("deepseek-r1-toolkit", "torch", "numpy", "tokenizers", "transformers", "safetensors", "gguf", "fastapi")
PACKAGES += ("uvicorn", "pyzmq", "msgspec", "httpx", "hypothesis", "schemathesis", "pytest")


@dataclass(frozen=True)
class Step:
    """One claim: how much of it by default, in what unit, and what shows it."""

    run: Callable[[int, int, str, Progress], tuple[dict[str, Any], bool]]
    count: int
    unit: str
    words: str


STEPS = {
    "schedules": Step(proof_steps.schedules, 4000, "schedules", "random schedules: each request as if it were alone"),
    "checkpoints": Step(proof_steps.checkpoints, 2000, "files", "mutated checkpoints: loaded, or a typed error"),
    "soak": Step(proof_steps.soak, 300, "s", "64 streams with clients that leave, then a flood, within --memory"),
    "smollm2": Step(proof_steps.smollm2, 20, "prompts", "greedy decoding of SmolLM2 as transformers does it"),
    "kills": Step(proof_training.kills, 50, "kills", "training runs killed at random instants end with the same bits"),
    "rollouts": Step(
        proof_training.rollouts, 10_000, "tokens", "log-probabilities of rollouts are the trainer's, bit for bit"
    ),
    "fuzz": Step(proof_steps.fuzz, 300, "examples", "fuzz of every operation that the OpenAPI description names"),
}


def git(*words: str) -> str:
    """What git says; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def code_digest() -> str:
    """A digest of every file that can change what a step shows."""
    digest = hashlib.sha256()
    for name in CODE:
        top = ROOT / name
        files = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def is_dirty() -> bool:
    """Whether the code differs from the commit, or there is none."""
    return not git("rev-parse", "HEAD") or bool(git("status", "--porcelain", "--", *CODE))


def proven(path: Path, *, code: str, seed: int, count: int, dirty: bool) -> bool:
    """Whether `path` is a passed proof of this code. One made before its code was committed is made again."""
    try:
        proof = json.loads(path.read_text())
        same = (proof["code"], proof["seed"], proof["count"]) == (code, seed, count)
        return bool(same and proof["passed"] and (dirty or not proof["dirty"]))
    except (OSError, ValueError, KeyError):
        return False


def prove(name: str, *, seed: int, count: int, out: Path, code: str) -> bool:
    """Run one step and write its proof; whether it passed."""
    step = STEPS[name]
    started, began = datetime.now(UTC), time.monotonic()
    proof = {
        "name": name,
        "claim": step.words,
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": is_dirty(),
        "code": code,
        "seed": seed,
        "count": count,
        "machine": machine_summary(),
        "versions": package_versions(PACKAGES),
        "started": started.isoformat(timespec="seconds"),
    }
    with open_progress(name, count, step.unit) as progress:
        result, passed = step.run(count, seed, code, progress)
    proof |= {"seconds": round(time.monotonic() - began, 1), "result": result, "passed": passed}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    with tempfile.NamedTemporaryFile("w", dir=out, prefix=f".{name}", delete=False) as partial:
        partial.write(json.dumps(proof, indent=1) + "\n")
    Path(partial.name).chmod(0o644)
    Path(partial.name).replace(path)
    print(f"{name}: {'passed' if passed else 'FAILED'} in {proof['seconds']} s, see {path}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; default: all")
    parser.add_argument("--again", action="store_true", help="also what is proven for this code")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="of the one step named, instead of the count that is claimed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof", help="folder of the proofs")
    given = parser.parse_args()
    if unknown := [name for name in given.steps if name not in STEPS]:
        parser.error(f"there is no step {unknown[0]!r}; steps: {', '.join(STEPS)}")
    if given.count is not None and (len(given.steps) != 1 or given.count < 1):
        parser.error("--count takes at least 1, and exactly one step beside it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a step has started has to be ended, too
    code = code_digest()
    failed = []
    for name in given.steps or STEPS:
        count = given.count or STEPS[name].count
        path = given.out / f"{name}.json"
        if not given.again and proven(path, code=code, seed=given.seed, count=count, dirty=is_dirty()):
            print(f"{name}: proven for this code, see {path}", flush=True)
        elif not prove(name, seed=given.seed, count=count, out=given.out, code=code):
            failed.append(name)
    if failed:
        print(f"not proven: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
