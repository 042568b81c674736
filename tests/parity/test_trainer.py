"""The loop follows the Hugging Face Trainer: same data, order, model and settings, loss after loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.data.examples import Example
from deepseek_r1.data.load import digest_of
from deepseek_r1.train.loop import Loop
from deepseek_r1.train.policy import load_policy
from deepseek_r1.train.supervised import Supervised
from support import tiny

STEPS = 50
LR = 2e-3


def examples() -> list[Example]:
    """Sequences of one length, so that the other side needs no padding; half of each is trained on."""
    rows = []
    for first in torch.randint(300, (400,), generator=torch.Generator().manual_seed(11)).tolist():
        row = [first]
        for _ in range(23):
            row.append((3 * row[-1] + 11) % 300)
        rows.append([5 + token for token in row])
    return [Example(tuple(row), tuple(i >= 12 for i in range(24)), f"row {n}") for n, row in enumerate(rows)]


class Ordered(Trainer):
    """The rows in the order in which they are given."""

    def _get_train_sampler(self, *args: object) -> torch.utils.data.SequentialSampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_follows_the_hugging_face_trainer(accumulate: int, models_folder: Path, tmp_path: Path) -> None:
    path = tiny.save("llama", models_folder)
    found = examples()
    config = TrainConfig(
        adapter=False,
        data=("unused.jsonl",),
        model=str(path),
        lr=LR,
        schedule="constant",
        weight_decay=0.1,
        beta2=0.999,
        clip_norm=1.0,
        batch_tokens=24 * 4,
        max_length=24,
        batch_sequences=4,
        accumulate=accumulate,
        steps=STEPS,
    )
    objective = Supervised(load_policy(config, path), found, digest_of(found).hex(), config)
    loop = Loop(objective.policy, objective, config, STEPS)
    order = [i for batch in range(STEPS * accumulate) for i in objective.chosen(batch)]
    ours = [line["loss"] for line in loop.run(None, lambda: False)]

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    rows = [
        {
            "input_ids": list(found[i].ids),
            "attention_mask": [1] * 24,
            "labels": [t if on else -100 for t, on in zip(found[i].ids, found[i].trained, strict=True)],
        }
        for i in order
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        max_steps=STEPS,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        optim="adamw_torch",
    )
    trainer = Ordered(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(ours) == len(theirs) == STEPS
    assert ours[0] - ours[-1] > 0.3, "it learns"
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=1e-4)
