"""Our engine against transformers on the same weights, the same dtype and the same prompts, interleaved in one run.

    python benchmarks/against_transformers.py [--runs 5] [--dtypes fp32,bf16] [--json FILE]

Both load SmolLM2-135M-Instruct from its GGUF file. Reported per dtype, as medians with minimum and maximum:
decode of a single request (tokens per second after the first token), and 16 requests at once against transformers'
`generate` one after the other (and, beside it, against its batched `generate`). Greedy, end token ignored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from deepseek_r1 import DeepSeekModel
from deepseek_r1.core.environment import machine_summary
from deepseek_r1.models.locate import locate_model

PROMPT_TOKENS = 64
NEW_TOKENS = 32
CONCURRENT = 16


class Clock(StoppingCriteria):
    """Notes when each token is there; never stops anything."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 20000, (CONCURRENT, PROMPT_TOKENS), generator=generator).tolist()


def decode_rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


class Theirs:
    def __init__(self, dtype: torch.dtype) -> None:
        path = locate_model("default")
        self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def generate(self, ids: list[list[int]]) -> list[float]:
        clock = Clock()
        self.model.generate(
            torch.tensor(ids),
            attention_mask=torch.ones(len(ids), len(ids[0]), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return clock.times

    def decode_alone(self, ids: list[list[int]]) -> float:
        return decode_rate(self.generate(ids[:1]))

    def one_by_one(self, ids: list[list[int]]) -> float:
        started = time.perf_counter()
        for prompt in ids:
            self.generate([prompt])
        return len(ids) * NEW_TOKENS / (time.perf_counter() - started)

    def batched(self, ids: list[list[int]]) -> float:
        started = time.perf_counter()
        self.generate(ids)
        return len(ids) * NEW_TOKENS / (time.perf_counter() - started)


class Ours:
    def __init__(self, precision: str) -> None:
        self.model = DeepSeekModel.from_pretrained("default", precision=precision, memory="3GiB")
        self.salt = 0

    def fresh(self, ids: list[list[int]]) -> list[list[int]]:
        """The same prompts with another first token: the prefix cache must not help."""
        self.salt += 1
        return [[2000 + self.salt, *prompt[1:]] for prompt in ids]

    def decode_alone(self, ids: list[list[int]]) -> float:
        stream = self.model.generate(
            self.fresh(ids[:1])[0], stream=True, temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True
        )
        times = [time.perf_counter() for _ in stream]
        assert len(times) == NEW_TOKENS
        return decode_rate(times)

    def together(self, ids: list[list[int]]) -> float:
        started = time.perf_counter()
        done = self.model.generate(self.fresh(ids), temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        assert sum(len(answer.token_ids) for answer in done) == len(ids) * NEW_TOKENS
        return len(ids) * NEW_TOKENS / (time.perf_counter() - started)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def measure(precision: str, runs: int) -> dict[str, dict[str, float]]:
    theirs = Theirs({"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    ours = Ours(precision)
    ids = prompts()
    tasks = {
        "decode alone, ours": ours.decode_alone,
        "decode alone, transformers": theirs.decode_alone,
        "16 requests, ours": ours.together,
        "16 requests, transformers one by one": theirs.one_by_one,
        "16 requests, transformers batched": theirs.batched,
    }
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for run in range(runs + 1):
        for name, task in tasks.items():
            rate = task(ids)
            if run:  # the first round warms up
                found[name].append(rate)
    ratios = {
        "ratio: decode alone": ("decode alone, ours", "decode alone, transformers"),
        "ratio: 16 requests / one by one": ("16 requests, ours", "16 requests, transformers one by one"),
        "ratio: 16 requests / batched": ("16 requests, ours", "16 requests, transformers batched"),
    }
    rows = {name: spread(values) for name, values in found.items()}
    for name, (a, b) in ratios.items():
        rows[name] = spread([x / y for x, y in zip(found[a], found[b], strict=True)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = {
        "machine": machine_summary(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "results": {},
    }
    for precision in options.dtypes.split(","):
        rows = measure(precision, options.runs)
        report["results"][precision] = rows
        print(f"{precision}{'':<40}{'median':>10}{'min':>10}{'max':>10}   (tokens/s, or ratio)")
        for name, row in rows.items():
            print(f"  {name:<42}{row['median']:>10.2f}{row['min']:>10.2f}{row['max']:>10.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
