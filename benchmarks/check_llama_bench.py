"""Our llama.cpp worker against llama.cpp's own `llama-bench`, in turn: is the peer as fast here as in its own tool?

    sh deploy/peers.sh llama-cpp llama-bench
    python benchmarks/check_llama_bench.py MODEL.gguf [--rounds 5] [--prompt 512] [--tokens 96]

Prints both medians and the ratio worker / tool for prefill and for decode alone; exit code 1 where one is below 0.95.
Decode runs after 16 tokens in both (llama-bench: depth 16). llama-bench takes no argmax of the logits, the worker does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from deepseek_r1.core.environment import cache_dir, cpu_count
from deepseek_r1.operate.compare.cases import SHORT_PROMPT, figures, parse_cases, prompts
from deepseek_r1.operate.compare.peers import KINDS, Peer
from deepseek_r1.operate.compare.process import Worker
from deepseek_r1.operate.compare.statistics import ratios, spread

LEAST = 0.95


def tool_rate(tool: Path, model: Path, threads: int, words: list[str]) -> float:
    """Tokens per second of the one test that `words` describe."""
    command = [str(tool), "-m", str(model), "-t", str(threads), "-r", "1", "-b", "2048", "-ub", "512", "-o", "json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    (test,) = json.loads(done.stdout)
    return float(test["avg_ts"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--peers-dir", type=Path, default=cache_dir() / "peers")
    options = parser.parse_args()
    tool = options.peers_dir / "llama-bench/bin/llama-bench"
    kind, threads = KINDS["llama.cpp"], cpu_count()
    python = options.peers_dir / kind.environment / "bin/python"
    tests = {
        "prefill": (f"prefill:{options.prompt}", ["-p", str(options.prompt), "-n", "0"]),
        "decode": (f"decode:{options.tokens}", ["-p", "0", "-n", str(options.tokens), "-d", str(SHORT_PROMPT)]),
    }
    worst = 1.0
    with Worker(Peer("llama.cpp", python, kind.worker, str(options.model.absolute()), {})) as worker:
        with worker.turn():
            worker.load(threads)
        for name, (words, flags) in tests.items():
            (case,) = parse_cases(words)
            ours, theirs = [], []
            for number in range(options.rounds + 1):
                with worker.turn():
                    answer = worker.run(prompts(case, 0, number, options.vocab), case.new_tokens)
                rate = tool_rate(tool, options.model, threads, flags)
                if number:
                    ours.append(figures(case, answer["seconds"])["rate"])
                    theirs.append(rate)
            ratio = ratios(ours, theirs)
            worst = min(worst, ratio["median"])
            print(
                f"{name}: worker {spread(ours)['median']:.1f} tokens/s, llama-bench {spread(theirs)['median']:.1f}, "
                f"ratio {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})",
                flush=True,
            )
    return 0 if worst >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
