"""Break checkpoints in thousands of ways and prove that each loads or raises a typed error, fast and in bounded memory.

    python tests/fault/mutate_checkpoints.py --count 2000 --seed 1 --out docs/proof/checkpoints.json

A run that was interrupted goes on where its report ends, unless the seed or the code under test changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SECONDS = 5.0
MEMORY = 1 << 30  # address space beyond the idle worker's
SAVE_EVERY = 100


def _status(name: str) -> int:
    """A VmXXX line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def worker() -> None:
    """Answer each path on stdin with one line of JSON on stdout."""
    from deepseek_r1.core.errors import CheckpointError, UnsupportedError
    from deepseek_r1.models.checkpoint.open import open_checkpoint

    def attempt(path: str) -> dict[str, Any]:
        """Open and read everything. The first typed error is the answer; reading goes on behind it."""
        answer: dict[str, Any] = {"outcome": "loaded"}
        try:
            with open_checkpoint(path) as checkpoint:
                for name, info in checkpoint.tensors.items():
                    try:
                        assert checkpoint.read(name).shape == info.shape
                        assert checkpoint.read_bf16_bits(name).shape == info.shape
                        if len(info.shape) == 2:
                            blocks = checkpoint.read_quantised(name)
                            assert blocks is None or blocks.codes.shape == info.shape
                            rows = checkpoint.read_rows(name, info.shape[0] // 2, info.shape[0])
                            assert rows.shape == (info.shape[0] - info.shape[0] // 2, info.shape[1])
                    except UnsupportedError as error:
                        answer = {"outcome": "typed", "error": "UnsupportedError", "field": "stored type"}
                        assert ": tensor " in str(error) and error.remedy, str(error)
        except CheckpointError as error:
            answer = {"outcome": "typed", "error": "CheckpointError", "field": error.field}
            assert error.path.startswith(path) and error.remedy, str(error)
        except UnsupportedError:
            answer = {"outcome": "typed", "error": "UnsupportedError", "field": "file"}
        return answer

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY,) * 2)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        idle, began = _status("VmRSS"), time.perf_counter()
        try:
            answer = attempt(json.loads(line))
        except BaseException as error:
            answer = {"outcome": "untyped", "error": type(error).__name__, "detail": str(error)[:500]}
        answer["seconds"] = time.perf_counter() - began
        answer["memory"] = max(_status("VmHWM") - idle, 0)
        print(json.dumps(answer), flush=True)


class Worker:
    """The long-lived process that opens the files; started again after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> dict[str, Any]:
        if self._process is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", __file__, "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        # the interpreter's own start is not part of the file's time, which the worker measures
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS + 5)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.close(kill=True)
        return {"outcome": "crash" if ready else "hang", "seconds": 0.0 if ready else SECONDS, "memory": 0}

    def close(self, *, kill: bool = False) -> None:
        if self._process is None:
            return
        if kill:
            self._process.kill()
        self._process.communicate(timeout=20)
        self._process = None


def reference_accepts(path: Path) -> bool:
    """Whether the reference implementation opens this safetensors file."""
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as opened:
            opened.keys()
    except Exception:
        return False
    return True


def _code_digest() -> str:
    here = Path(__file__).resolve()
    package = here.parents[2] / "src" / "deepseek_r1" / "models" / "checkpoint"
    files = [*sorted(package.glob("*.py")), here, here.with_name("checkpoint_mutations.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "uncommitted"


def _machine() -> dict[str, Any]:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _fresh(seed: int) -> dict[str, Any]:
    return {
        "what": "mutated checkpoints: each loads or raises CheckpointError or UnsupportedError",
        "seed": seed, "code": _code_digest(), "done": 0, "structural": 0, "random": 0, "loaded": 0, "typed_errors": 0,
        "failures": [], "by_error": {}, "by_field": {}, "by_base": {}, "max_seconds": 0.0, "peak_memory_mib": 0.0,
        "limits": {"seconds": SECONDS, "memory_mib": MEMORY >> 20}, "refused_here_accepted_by_safetensors": 0,
        "elapsed_seconds": 0.0,
    }  # fmt: skip


def _record(report: dict[str, Any], index: int, base: str, kind: str, answer: dict[str, Any]) -> None:
    if answer["outcome"] in ("loaded", "typed") and answer["seconds"] > SECONDS:
        answer["outcome"] = "slow"
    report[kind] += 1
    by_base = Counter(report["by_base"].get(base, {}))
    by_base[answer["outcome"]] += 1
    report["by_base"][base] = dict(by_base)
    if answer["outcome"] == "loaded":
        report["loaded"] += 1
    elif answer["outcome"] == "typed":
        report["typed_errors"] += 1
        # names and numbers out of the field: "tensor 'a.b' offset" counts as "tensor offset"
        field = re.sub(r"\s*('(\\.|[^'])*'|\"(\\.|[^\"])*\"|\[\d+\]|\b\d+\b)", "", answer["field"])
        for table, key in (("by_field", field), ("by_error", answer["error"])):
            report[table][key] = report[table].get(key, 0) + 1
    else:
        report["failures"].append({"index": index, "base": base, "kind": kind, **answer})
    report["max_seconds"] = max(report["max_seconds"], round(answer["seconds"], 4))
    report["peak_memory_mib"] = max(report["peak_memory_mib"], round(answer["memory"] / 2**20, 1))


def run(count: int, seed: int, out: Path) -> dict[str, Any]:
    """Run the cases that `out` does not hold yet, up to `count`; return the report, which is also in `out`."""
    from checkpoint_mutations import make_bases, mutate

    report = _fresh(seed)
    if out.exists():
        earlier = json.loads(out.read_text())
        if (earlier["seed"], earlier["code"]) == (seed, report["code"]):
            report = earlier
    report |= {"commit": _commit(), "machine": _machine()}
    process = Worker()
    before, began = report["elapsed_seconds"], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutated-") as scratch:
        bases = make_bases(Path(scratch))
        for index in range(report["done"], count):
            rng = random.Random(f"{seed}/{index}")
            structural = index % 2 == 0
            (base,) = rng.choices([base for base, _ in bases], [weight for _, weight in bases])
            broken = mutate(base, rng, structural=structural)
            folder = Path(scratch) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, data in base.files.items():
                (folder / name).write_bytes(broken if name == base.target else data)
            answer = process.ask(folder / base.opened)
            if base.target.endswith(".safetensors") and answer["outcome"] in ("loaded", "typed"):
                accepted = reference_accepts(folder / base.target)
                if answer["outcome"] == "loaded" and not accepted:
                    answer |= {"outcome": "accepted here, refused by safetensors"}
                elif accepted and answer.get("error") == "CheckpointError":
                    report["refused_here_accepted_by_safetensors"] += 1
            _record(report, index, base.name, "structural" if structural else "random", answer)
            report["done"] = index + 1
            if report["done"] % SAVE_EVERY == 0 or report["done"] == count:
                report["elapsed_seconds"] = round(before + time.monotonic() - began, 1)
                _save(report, out)
        process.close()
    return report


def _save(report: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    os.replace(partial, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/proof/checkpoints.json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return 0
    report = run(arguments.count, arguments.seed, arguments.out)
    summary = {key: value for key, value in report.items() if key not in ("by_field", "by_base", "machine")}
    print(json.dumps(summary, indent=1))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
