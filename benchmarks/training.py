"""Adapter training beside Hugging Face's: one step of LoRA on the default model, the same tokens, shapes and settings.

    python benchmarks/training.py [--rounds 5] [--sequences 16] [--length 128] [--json FILE]

Ours is the frozen 4-bit file with an adapter, as `deepseek-r1 train` trains it; the other is transformers with PEFT in
bf16, the model's weights dequantised. Both train the same adapter (rank 16 on all linears) on batches without padding:
forward, backward, clipping, AdamW. Each runs in a process of its own and waits while the other works; rounds alternate.
Reported: tokens per second (median), ours over theirs, and each process's peak memory.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pairs
from pairs import ALPHA, LEAVES, RANK


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
    """Run `steps` steps in each turn."""
    import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin

    run = (work_ours if kind == "ours" else work_theirs)(model, sequences, length)
    for _ in pairs.turns():
        for _ in range(steps):
            next(run)


def main() -> int:
    parser = pairs.parser(__doc__, "training.json")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="in each round")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.model, options.sequences, options.length, options.steps)
        return 0
    count = options.steps * options.sequences * options.length
    with tempfile.TemporaryDirectory() as folder:
        pairs.save_bf16(folder)
        rounds = pairs.measure(folder, options.rounds, lambda seconds: {"tokens_per_second": count / seconds})
    pairs.show(rounds, "tokens_per_second", "tokens/s")
    fields = {"rounds": rounds, "steps": options.steps, "sequences": options.sequences, "length": options.length}
    pairs.save_report(options.json, ("torch", "transformers", "peft"), fields)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
