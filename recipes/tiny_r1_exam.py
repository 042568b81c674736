"""What the tiny model can do with problems it never saw, and how evenly it uses its experts on their text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from deepseek_r1.layers.balance import utilisation
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.serve.local import DeepSeekModel
from tiny_r1_tasks import TASKS, draw
from tiny_r1_training import losses, make_batch

TEXTS = 160  # held-out conversations that losses and loads are measured on
ANSWER_TOKENS = 224


def examine(model: Path, problems: int) -> dict[str, float]:
    """The share of held-out problems of each task that the saved model answers exactly, decoding greedily."""
    rng = random.Random("examination")
    asked = [draw(rng, task, held_out=True) for task in TASKS for _ in range(problems)]
    with DeepSeekModel.from_pretrained(model, precision="fp32", memory="2GiB") as loaded:
        conversations: Any = [[{"role": "user", "content": problem.question}] for problem in asked]
        answers: Any = loaded.chat(conversations, temperature=0, max_tokens=ANSWER_TOKENS)
    right = dict.fromkeys(TASKS, 0)
    for problem, answer in zip(asked, answers, strict=True):
        right[problem.task] += answer.text.strip() == problem.answer
    return {task: round(count / problems, 4) for task, count in right.items()}


@torch.no_grad()
def measure_routing(decoder: Decoder, tokenizer: Tokenizer, balance: str) -> dict[str, Any]:
    """Losses on held-out text, and of every router the loads of its experts and how even they are."""
    batch = make_batch(tokenizer, random.Random("held-out text"), TEXTS, held_out=True)
    cost, routings = losses(decoder, batch, balance)
    layers = {name.removesuffix(".mlp.router").removesuffix(".block"): r.counts for name, r in routings.items()}
    even = {name: round(utilisation(counts), 4) for name, counts in layers.items()}
    return {
        "tokens": len(batch.ids),
        "loss": round(cost.main.item(), 4),
        "mtp_loss": round(cost.mtp.item(), 4),
        "loads": {name: counts.tolist() for name, counts in layers.items()},
        "utilisation": even,
        "mean_utilisation": round(sum(even.values()) / len(even), 4),
    }
