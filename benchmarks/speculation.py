"""What guessing from a request's own text (`--speculative ngram`) gains where answers copy, and costs where they don't.

    python benchmarks/speculation.py [--runs 5] [--precision fp32] [--limit N] [--json FILE]

Two engines over one loaded model, one with guesses and one without, answer each prompt of `speculation_prompts.json`
alone, greedily, one right after the other and in turns the one or the other first. Reported per kind of prompt: seconds
after the first token without guesses over those with guesses (the median of the runs per prompt; then the median over
the prompts, its 95 % interval by bootstrap, least and greatest), guesses per token, and the share that was right.
An answer that degenerates into repetition is excluded: one whose last 64 tokens repeat a cycle of at most 16. So is one
of fewer than 16 tokens. Ends with 1 when an answer with guesses is not the one without.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepseek_r1 import DeepSeekModel
from deepseek_r1.core.environment import machine_summary
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.serve.chat import encode_chat

PROMPTS = Path(__file__).with_name("speculation_prompts.json")
RESULT = Path(__file__).with_name("results") / "speculation.json"
NEW_TOKENS = 160
TAIL, LONGEST_CYCLE = 64, 16
LEAST_TOKENS = 16
RESAMPLED = 2000


@dataclass
class Answer:
    """One answer's tokens, the seconds from its first token to its last, and the guesses it took."""

    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0


def texts(kind: str) -> list[str]:
    """The prompts of a kind: "copying" (edit, extract, continue; a passage and what to do with it) or "free"."""
    found = json.loads(PROMPTS.read_text())
    if kind == "free":
        return list(found["free"])
    return [f"{task}\n\n{found['passages'][name]}" for name, task in found["copying"]]


def degenerate(tokens: list[int]) -> bool:
    """Whether the last `TAIL` tokens repeat a cycle of at most `LONGEST_CYCLE`."""
    tail = tokens[-TAIL:]
    return len(tail) == TAIL and any(tail[cycle:] == tail[:-cycle] for cycle in range(1, LONGEST_CYCLE + 1))


def engines(model: DeepSeekModel) -> dict[str, Engine]:
    """An engine without guesses and one with them, over the model's own weights."""
    sizes: dict[str, Any] = {"num_blocks": 128, "max_concurrent": 1}
    made = {}
    for speculative in ("off", "ngram"):
        made[speculative] = Engine(model.engine.runner.decoder, **sizes, speculative=speculative)
        made[speculative].set_vocabulary(model.tokenizer.token_bytes, model.tokenizer.eos_token_ids)
    return made


def answer(engine: Engine, name: str, prompt: list[int]) -> Answer:
    """One greedy answer, alone."""
    engine.submit(GenerateRequest(name, prompt, SamplingParams(NEW_TOKENS, temperature=0)))
    before = engine.stats
    found = Answer()
    started = 0.0
    while engine.has_work:
        outputs = engine.step()
        if outputs and not found.tokens:
            started = time.perf_counter()
        found.tokens += [token for output in outputs for token in output.token_ids]
    found.seconds = time.perf_counter() - started
    found.drafted = engine.stats.draft_tokens - before.draft_tokens
    found.accepted = engine.stats.accepted_tokens - before.accepted_tokens
    return found


def measure(both: dict[str, Engine], prompt: list[int], runs: int) -> dict[str, Any]:
    """One prompt: its ratio in every run, after a first one that warms up and fills the prefix cache."""
    ratios: list[float] = []
    found: dict[str, Answer] = {}
    same = True
    for run in range(runs + 1):
        order = list(both) if run % 2 else list(both)[::-1]
        found = {name: answer(both[name], f"run {run}", prompt) for name in order}
        same = same and found["off"].tokens == found["ngram"].tokens
        if run:
            ratios.append(found["off"].seconds / max(found["ngram"].seconds, 1e-9))
    with_guesses = found["ngram"]
    return {
        "tokens": len(with_guesses.tokens),
        "drafted": with_guesses.drafted,
        "accepted": with_guesses.accepted,
        "degenerate": degenerate(with_guesses.tokens),
        "same_tokens": same,
        "ratios": ratios,
    }


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of the medians of samples drawn from `values` with replacement."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLED))
    return medians[RESAMPLED * 25 // 1000], medians[RESAMPLED * 975 // 1000]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the prompts of a kind show together."""
    long = [row for row in rows if row["tokens"] >= LEAST_TOKENS]
    kept = [row for row in long if not row["degenerate"]]
    medians = [statistics.median(row["ratios"]) for row in kept]
    by_run = [statistics.median(run) for run in zip(*(row["ratios"] for row in kept), strict=True)]
    tokens, drafted = sum(row["tokens"] for row in kept), sum(row["drafted"] for row in kept)
    low, high = interval(medians) if medians else (0.0, 0.0)
    return {
        "prompts": len(kept),
        "excluded_degenerate": len(long) - len(kept),
        "excluded_short": len(rows) - len(long),
        "ratio": {"median": statistics.median(medians or [0.0]), "interval_95": [low, high]}
        | {"min": min(medians, default=0.0), "max": max(medians, default=0.0), "medians_of_runs": by_run},
        "drafts_per_token": drafted / max(tokens, 1),
        "differing": sum(not row["same_tokens"] for row in rows),
        "acceptance": sum(row["accepted"] for row in kept) / max(drafted, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--limit", type=int, help="take only so many prompts of each kind")
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    model = DeepSeekModel.from_pretrained("default", precision=options.precision, memory="2GiB", max_concurrent=1)
    both = engines(model)
    report: dict[str, Any] = {
        "machine": machine_summary(),
        "versions": {"torch": version("torch")},
        "precision": options.precision,
        "path": both["off"].path,
        "threads": torch.get_num_threads(),
        "runs": options.runs,
        "new_tokens": NEW_TOKENS,
        "results": {},
    }
    for kind in ("copying", "free"):
        rows = []
        for text in texts(kind)[: options.limit]:
            _, prompt = encode_chat(model.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
            rows.append({"prompt": text} | measure(both, prompt, options.runs))
        found = summary(rows)
        report["results"][kind] = found | {"each": rows}
        ratio = found["ratio"]
        low, high = ratio["interval_95"]
        print(f"{kind}: {found['prompts']} prompts, {found['differing']} with another answer (excluded: ", end="")
        print(f"{found['excluded_degenerate']} degenerate, {found['excluded_short']} short)")
        print(f"  ratio {ratio['median']:.2f} ({low:.2f} to {high:.2f}), ", end="")
        print(f"prompts {ratio['min']:.2f} to {ratio['max']:.2f}")
        print(
            f"  {found['drafts_per_token']:.2f} guesses per token, {100 * found['acceptance']:.0f} % right", flush=True
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(found["differing"] for found in report["results"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
