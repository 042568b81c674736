"""The server beside the bare engine: the same prompts and lengths over HTTP, streaming, and without a server.

    python benchmarks/streams.py [MODEL] [--streams 16] [--tokens 128] [--rounds 5] [--json FILE]

Each round runs both, in turns the one or the other first: `deepseek-r1 serve` in processes of its own with one client
per stream (in this process, so the client's work counts), and the engine in this process. The other waits idle.
Reported: tokens per second from the first request to the last token, and the server's over the engine's.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deepseek_r1 import DeepSeekModel
from deepseek_r1.core.environment import machine_summary
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.operate.benchmark import Sample
from deepseek_r1.operate.benchmark_targets import HttpTarget

RESULT = Path(__file__).with_name("results") / "streams.json"
PROMPT_WORDS = 24
MEMORY = "1500MiB"


def prompts(streams: int, seed: str) -> list[str]:
    """Prompts that no other round has, so that no prefix is shared."""
    draw = random.Random(seed)
    words = "river stone paper cloud seven market green window after under letter music garden winter".split()
    return [" ".join(draw.choice(words) for _ in range(PROMPT_WORDS)) for _ in range(streams)]


def over_http(target: HttpTarget, texts: list[str]) -> tuple[float, int]:
    """Seconds and tokens."""
    samples = [Sample() for _ in texts]
    threads = [threading.Thread(target=target.run, args=pair) for pair in zip(texts, samples, strict=True)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, sum(sample.output_tokens for sample in samples)


def in_process(model: DeepSeekModel, texts: list[str], tokens: int, name: str) -> tuple[float, int]:
    """Seconds and tokens."""
    engine = model.engine
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    encoded = [model.tokenizer.encode(text) for text in texts]
    produced = 0
    started = time.perf_counter()
    for number, ids in enumerate(encoded):
        engine.submit(GenerateRequest(f"{name} {number}", ids, sampling))
    while engine.has_work:
        produced += sum(len(output.token_ids) for output in engine.step())
    return time.perf_counter() - started, produced


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    command = [sys.executable, "-m", "deepseek_r1.cli.main", "serve", options.model, "--port", "0", "--memory", MEMORY]
    command += ["--adapter", "none"]  # the engine beside it is the bare model
    server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        threading.Thread(target=server.stdout.read, daemon=True).start()
        model = DeepSeekModel.from_pretrained(options.model, memory=MEMORY, max_concurrent=32)
        target = HttpTarget(url, options.model, None, options.tokens, 600)
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds + 1):  # the first warms up
            found: dict[str, float] = {}
            for kind in ("http", "engine")[:: 1 if number % 2 else -1]:
                texts = prompts(options.streams, f"{kind} {number}")
                run = (
                    over_http(target, texts)
                    if kind == "http"
                    else in_process(model, texts, options.tokens, f"{number}")
                )
                found[kind] = run[1] / run[0]
            if number:
                rounds.append(found)
                print(json.dumps(found), flush=True)
    finally:
        server.terminate()
        server.wait(30)
    shares = [found["http"] / found["engine"] for found in rounds]
    print(
        f"{options.streams} streams over HTTP: {100 * statistics.median(shares):.0f} % of the bare engine's rate ",
        end="",
    )
    print(f"({100 * min(shares):.0f} to {100 * max(shares):.0f})")
    report: dict[str, Any] = {
        "machine": machine_summary(),
        "model": Path(options.model).name,
        "precision": model.engine.precision,
        "path": model.engine.path,
        "streams": options.streams,
        "tokens": options.tokens,
        "rounds": rounds,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
