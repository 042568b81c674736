"""From the command to the first token with the packed cache warm, and what memory the server then takes.

    python benchmarks/cold_start.py [MODEL] [--precision int4] [--memory 2GiB] [--starts 5] [--json FILE]

Each start is `deepseek-r1 serve` in fresh processes, asked for one token as soon as it is ready. Memory is the
proportional set of all its processes (PSS, mapped weights counted once) after an answer of 64 tokens. The pool of keys
and values is touched as it is used, so what counts is what is resident beyond the packed weights.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from deepseek_r1.core.environment import machine_summary, process_pss

RESULT = Path(__file__).with_name("results") / "cold_start.json"
SIZES = """
import sys
from deepseek_r1.config.base import parse_size
from deepseek_r1.engine.build import load_engine
from deepseek_r1.models.locate import locate_model
engine = load_engine(locate_model(sys.argv[1]), precision=sys.argv[2], memory_bytes=parse_size(sys.argv[3]))
print(engine.weights_bytes, engine.kv_bytes, engine.path, engine.precision)
"""


def complete(url: str, tokens: int) -> None:
    body = {"model": "default", "prompt": "The", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).read()


def start(model: str, precision: str, memory: str) -> tuple[float, int]:
    """Seconds from the command to the first token, and the bytes that its processes take."""
    command = [sys.executable, "-m", "deepseek_r1.cli.main", "serve", model, "--port", "0"]
    command += ["--precision", precision, "--memory", memory, "--adapter", "none"]
    began = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        complete(url, 1)
        seconds = time.perf_counter() - began
        complete(url, 64)
        family = [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]
        return seconds, sum(process_pss(pid) for pid in family)
    finally:
        server.terminate()
        server.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    sizes = subprocess.run(
        [sys.executable, "-c", SIZES, options.model, options.precision, options.memory],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    weights, cache = int(sizes[0]), int(sizes[1])
    runs = [start(options.model, options.precision, options.memory) for _ in range(options.starts + 1)][1:]
    seconds, taken = [run[0] for run in runs], [run[1] for run in runs]
    print(f"command to first token {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"memory {max(taken) >> 20} MiB, of which packed weights {weights >> 20} (KV pool: up to {cache >> 20})")
    report: dict[str, Any] = {
        "machine": machine_summary(),
        "model": Path(options.model).name,
        "path": sizes[2],
        "precision": sizes[3],
        "seconds": seconds,
        "bytes": taken,
        "weights_bytes": weights,
        "kv_bytes": cache,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
