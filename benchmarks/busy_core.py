"""What is left of decoding when another process keeps one core busy.

    python benchmarks/busy_core.py [MODEL] [--precision int4] [--streams 16] [--tokens 128] [--rounds 5] [--json FILE]

Each round decodes twice, in turns first alone or first beside a process that only counts, bound to the
first core. Reported: tokens per second beside it over those alone (median of the rounds, least and greatest), and the
longest step beside it over the median step beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deepseek_r1.core.environment import machine_summary
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.models.locate import locate_model

COUNT = (
    "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile os.getppid() == %d: sum(range(100000))"
)
RESULT = Path(__file__).with_name("results") / "busy_core.json"
PROMPT_TOKENS = 32


def decode(engine: Engine, name: str, streams: int, tokens: int) -> list[float]:
    """Seconds of each decode step, all streams running: not of the one in which the last of them begin."""
    draw = random.Random(name)
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    for number in range(streams):
        ids = [draw.randrange(5, engine.vocab_size) for _ in range(PROMPT_TOKENS)]
        engine.submit(GenerateRequest(f"{name} {number}", ids, sampling))
    steps = []
    while engine.has_work:
        started = time.perf_counter()
        outputs = engine.step()
        if len(outputs) == streams:
            steps.append(time.perf_counter() - started)
    return steps[1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    engine = load_engine(locate_model(options.model), precision=options.precision, memory_bytes=3 << 30)
    decode(engine, "warm", options.streams, options.tokens)
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        found: dict[str, Any] = {}
        for kind in ("alone", "beside")[:: 1 if number % 2 else -1]:
            other = None
            if kind == "beside":
                other = subprocess.Popen([sys.executable, "-c", COUNT % os.getpid()])
                time.sleep(0.3)
            try:
                steps = decode(engine, f"{kind} {number}", options.streams, options.tokens)
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
            median = statistics.median(steps)
            found[kind] = {
                "tokens_per_second": options.streams * len(steps) / sum(steps),
                "median_step_ms": 1e3 * median,
                "worst_step_over_median": max(steps) / median,
            }
        found["share"] = found["beside"]["tokens_per_second"] / found["alone"]["tokens_per_second"]
        rounds.append(found)
        print(json.dumps(found), flush=True)
    shares = [found["share"] for found in rounds]
    worst = max(found["beside"]["worst_step_over_median"] for found in rounds)
    print(f"{options.streams} streams: {100 * statistics.median(shares):.0f} % of the throughput alone ", end="")
    print(f"({100 * min(shares):.0f} to {100 * max(shares):.0f}), worst step {worst:.1f} times the median")
    report = {
        "machine": machine_summary(),
        "model": Path(options.model).name,
        "precision": engine.precision,
        "path": engine.path,
        "streams": options.streams,
        "tokens": options.tokens,
        "rounds": rounds,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
