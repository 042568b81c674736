"""Adapter training beside Hugging Face's: one step of LoRA on the default model, the same tokens, shapes and settings.

    python benchmarks/training.py [--rounds 5] [--sequences 16] [--length 128] [--json FILE]

Ours is the frozen 4-bit file with an adapter, as `deepseek-r1 train` trains it; the other is transformers with PEFT in
bf16, the model's weights dequantised. Both train the same adapter (rank 16 on all linears) on batches without padding:
forward, backward, clipping, AdamW. Each runs in a process of its own and waits while the other works; rounds alternate.
Reported: tokens per second (median), ours over theirs, and each process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("results") / "training.json"
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184"
RANK, ALPHA = 16, 32
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def work_ours(model: str, sequences: int, length: int) -> Any:
    import torch

    from deepseek_r1.config.train import TrainConfig
    from deepseek_r1.data.packing import Batch
    from deepseek_r1.models.locate import locate_model
    from deepseek_r1.train.loop import Loop, MicroBatch
    from deepseek_r1.train.policy import load_policy
    from deepseek_r1.train.supervised import Supervised

    config = TrainConfig(
        data=("none",), lora_targets=("all-linear",), lora_r=RANK, lora_dropout=0.0, schedule="constant"
    )
    policy = load_policy(config, locate_model("default"))

    class Given(Supervised):
        def __init__(self) -> None:
            self.policy = policy

        def micro_batches(self, step: int) -> list[MicroBatch]:
            ids = tokens(step, sequences, length)
            targets = torch.cat((ids[:, 1:], torch.zeros(sequences, 1, dtype=torch.int64)), 1)
            weights = torch.ones(sequences, length)
            weights[:, -1] = 0
            positions = torch.arange(length).repeat(sequences)
            batch = Batch(ids.flatten(), positions, targets.flatten(), weights.flatten(), (length,) * sequences)
            return [MicroBatch(batch, float(weights.sum()), ids.numel())]

    return iter(Loop(policy, Given(), config, 10**6).run(None, lambda: False))


def work_theirs(model: str, sequences: int, length: int) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LEAVES, lora_dropout=0.0)
    learner = peft.get_peft_model(base, settings).train()
    learnt = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=3e-4, weight_decay=0.01)

    def steps() -> Any:
        step = 0
        while True:
            ids = tokens(step, sequences, length)
            learner(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            yield None

    return steps()


def tokens(step: int, sequences: int, length: int) -> Any:
    import torch

    return torch.randint(1000, 40000, (sequences, length), generator=torch.Generator().manual_seed(step))


def serve(kind: str, model: str, sequences: int, length: int, steps: int) -> None:
    """Run `steps` steps for each line that comes; answer with the seconds and the process's peak memory."""
    import resource

    import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin

    run = (work_ours if kind == "ours" else work_theirs)(model, sequences, length)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(steps):
            next(run)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="in each round")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.model, options.sequences, options.length, options.steps)
        return 0
    from deepseek_r1.config.precision import parse_precision
    from deepseek_r1.core.environment import machine_summary
    from deepseek_r1.models.loading import load_decoder
    from deepseek_r1.models.locate import locate_model
    from deepseek_r1.models.saving import save_model

    with tempfile.TemporaryDirectory() as folder:
        save_model(load_decoder(locate_model("default"), parse_precision("bf16"), pack=False), folder)
        common = ["--sequences", str(options.sequences), "--length", str(options.length), "--steps", str(options.steps)]
        both = {
            kind: subprocess.Popen(
                [sys.executable, __file__, "--serve", kind, "--model", folder, *common],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"GLIBC_TUNABLES": TUNABLES},
            )
            for kind in ("ours", "theirs")
        }
        rounds: list[dict[str, Any]] = []
        try:
            for number in range(options.rounds + 1):  # the first warms up
                found: dict[str, Any] = {}
                for kind in ("ours", "theirs")[:: 1 if number % 2 else -1]:
                    process = both[kind]
                    assert process.stdin is not None and process.stdout is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()
                    answer = json.loads(process.stdout.readline())
                    count = options.steps * options.sequences * options.length
                    found[kind] = {"tokens_per_second": count / answer["seconds"], "peak_bytes": answer["peak"]}
                if number:
                    rounds.append(found)
                    print(json.dumps(found), flush=True)
        finally:
            for process in both.values():
                process.kill()
                process.wait()
    rates = {kind: [r[kind]["tokens_per_second"] for r in rounds] for kind in both}
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    peaks = {kind: max(r[kind]["peak_bytes"] for r in rounds) >> 20 for kind in both}
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    for kind in both:
        print(f"{kind}: {medians[kind]:.0f} tokens/s, at most {peaks[kind]} MiB")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    report = {"machine": machine_summary(), "versions": versions, "rounds": rounds, "steps": options.steps}
    report |= {"sequences": options.sequences, "length": options.length}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
