"""How the tiny model learns: its shape, its batches, its loss, and a run that goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.layers import Packed
from deepseek_r1.layers.balance import (
    Routing,
    entropy_loss,
    load_balance_loss,
    observe_routing,
    update_bias,
    utilisation,
)
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors
from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.models.text.tokenizer import Tokenizer
from tiny_r1_tasks import TASKS, draw
from tiny_r1_tokenizer import VOCABULARY, answer_text, write_text

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 96,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
"""config.json's fields: DeepSeek-R1 in everything but size.

Rope's base suits texts of some hundred tokens: with R1's 10000 few frequencies told neighbours apart, and copying was
learnt later (docs/LOG.md).
"""

BATCH = 20  # problems per step
SECOND_TURNS = 0.2  # share of problems that follow on another one in their conversation
PEAK_RATE, LAST_RATE, WARM_UP = 2.5e-3, 5e-5, 50  # learning rate: its peak, its end, and the steps up to the peak
WEIGHT_DECAY = 0.05
CLIP = 1.0  # norm of the gradient
MTP_WEIGHT = 0.3  # DeepSeek-V3's for most of its training
BIAS_RATE = 2e-3
BALANCE_WEIGHT = 0.01  # of the auxiliary and the entropy loss
NOTE_EVERY = 20  # steps between two lines of the history

BALANCES = ("bias", "auxiliary", "entropy", "none")


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run. A run goes on only under the settings that it began with."""

    steps: int
    seed: int
    balance: str


def model_config() -> ModelConfig:
    """The tiny model's shape, read as a checkpoint's config.json is."""
    return FAMILIES.load("deepseek_v3").from_hf(Fields("tiny_r1", SHAPE))  # type: ignore[no-any-return]


def new_decoder(seed: int) -> Decoder:
    """The untrained model: normal weights whose products keep their inputs' scale, norms of one, no bias.

    The embedding is at the scale of what the layers add: where it was smaller, what a token is drowned among them, and
    the model learnt to copy much later.
    """
    config = model_config()
    decoder = Decoder(config, DeepSeekConfig())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            # What is added to the residual stream starts smaller: as much is added as there are layers.
            added = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 1.0 if name == "embedding.weight" else weight.shape[-1] ** -0.5
            std *= (2 * config.layers) ** -0.5 if added else 1.0
            weight.normal_(0.0, std, generator=generator)
    return decoder


@dataclass(frozen=True)
class Batch:
    """Conversations of these lengths end to end: inputs, positions, the ids that follow, and what is to be learnt of
    those and of the ones after them (-100: nothing); all (T,).
    """

    lengths: list[int]
    ids: Tensor
    positions: Tensor
    following: Tensor
    targets: Tensor
    second_targets: Tensor


def make_batch(tokenizer: Tokenizer, rng: random.Random, size: int, *, held_out: bool = False) -> Batch:
    """`size` conversations. Only what the model has to write itself is a target."""
    names = tuple(TASKS)
    columns: list[list[int]] = [[], [], [], [], []]
    lengths = []
    for _ in range(size):
        problem = draw(rng, rng.choice(names), held_out=held_out)
        messages = [{"role": "user", "content": problem.question}]
        if rng.random() < SECOND_TURNS:
            before = draw(rng, rng.choice(names), held_out=held_out)
            messages[:0] = [
                {"role": "user", "content": before.question},
                {"role": "assistant", "content": before.answer},
            ]
        prompt = tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)
        ids = prompt + tokenizer.encode(answer_text(problem), add_special_tokens=False)
        learnt = [-100] * len(prompt) + ids[len(prompt) :]
        length = len(ids) - 1
        parts = (ids[:-1], list(range(length)), ids[1:], learnt[1:], [*learnt[2:], -100])
        for column, part in zip(columns, parts, strict=True):
            column += part
        lengths.append(length)
    return Batch(lengths, *map(torch.tensor, columns))


@dataclass(frozen=True)
class Losses:
    """What a batch cost: cross-entropy per token of the next token, and of the one after it by the MTP module."""

    main: Tensor
    mtp: Tensor
    balance: Tensor


def losses(decoder: Decoder, batch: Batch, balance: str) -> tuple[Losses, dict[str, Routing]]:
    """The losses of a batch (those of `balance` as their mean over the routers), and what the routers did."""
    ctx = Packed(batch.lengths)
    with observe_routing(decoder) as routings:
        hidden = decoder(batch.ids, batch.positions, ctx)
        further = decoder.predict(0, hidden, batch.following, batch.positions, ctx)
    main = _cross_entropy(decoder, hidden, batch.targets)
    mtp = _cross_entropy(decoder, further, batch.second_targets)
    terms = {"auxiliary": lambda r: load_balance_loss(r.scores, r.chosen), "entropy": lambda r: entropy_loss(r.scores)}
    term = terms.get(balance)
    even = torch.zeros(()) if term is None else torch.stack([term(r) for r in routings.values()]).mean()
    return Losses(main, mtp, even), routings


def _cross_entropy(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    kept = targets >= 0
    return nn.functional.cross_entropy(decoder.logits(hidden[kept]), targets[kept])


class Run:
    """A training run in the folder `state`: begun there, or gone on with where the folder holds one."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, state: Path) -> None:
        self.settings = settings
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._tokenizer = tokenizer
        self._file, self._notes = state / "state.safetensors", state / "run.json"
        self.decoder = new_decoder(settings.seed)
        self._weights = {name: weight for name, weight in self.decoder.named_parameters() if weight.requires_grad}
        matrices = [weight for weight in self._weights.values() if weight.dim() > 1]
        vectors = [weight for weight in self._weights.values() if weight.dim() == 1]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        state.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in state.glob(".*.partial"):
            left_by_a_kill.unlink()
        if self._file.is_file():
            self._restore()

    def train(self, until: int) -> Iterator[dict[str, Any]]:
        """Steps up to number `until`; yields after each what it came to. Between two yields nothing is half done."""
        while self.step < until:
            # Every step draws from a generator of its own, so that a resumed run draws what an unbroken one would.
            rng = random.Random(f"{self.settings.seed} {self.step}")
            batch = make_batch(self._tokenizer, rng, BATCH)
            rate = learning_rate(self.step, self.settings.steps)
            cost, routings = losses(self.decoder, batch, self.settings.balance)
            total = cost.main + MTP_WEIGHT * cost.mtp + BALANCE_WEIGHT * cost.balance
            self._optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._weights.values(), CLIP)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
            if self.settings.balance == "bias":
                for routing in routings.values():
                    update_bias(routing.router, routing.counts, BIAS_RATE)
            self.step += 1
            line = {
                "step": self.step,
                "loss": round(cost.main.item(), 4),
                "mtp_loss": round(cost.mtp.item(), 4),
                "tokens": len(batch.ids),
                "utilisation": {name: round(utilisation(r.counts), 4) for name, r in routings.items()},
            }
            if self.step % NOTE_EVERY == 0:
                self.history.append(line)
            yield line

    def save(self) -> None:
        """Write all that the next steps depend on. A run killed while it writes goes on from the save before."""
        notes = {"settings": asdict(self.settings), "history": self.history}
        write_text(self._notes, json.dumps(notes, indent=1) + "\n")
        tensors = {"step": torch.tensor([float(self.step)])}
        tensors |= {f"weight.{name}": weight for name, weight in self.decoder.named_parameters()}
        for name, weight in self._weights.items():
            state = self._optimizer.state[weight]
            tensors |= {f"{part}.{name}": state[part] for part in ("exp_avg", "exp_avg_sq") if part in state}
        write_safetensors(self._file, {name: tensor.detach().numpy() for name, tensor in tensors.items()})

    @torch.no_grad()
    def _restore(self) -> None:
        notes = json.loads(self._notes.read_text(encoding="utf-8"))
        if notes["settings"] != asdict(self.settings):
            raise ConfigError(
                f"{self._file.parent} holds a run with other settings: {notes['settings']}",
                remedy="give the same settings to go on with it, or another folder to begin a new run",
            )
        with open_checkpoint(self._file) as checkpoint:
            stored = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.tensors}
        self.step = int(stored["step"])
        # The notes are written first, so they may be a save ahead.
        self.history = [line for line in notes["history"] if line["step"] <= self.step]
        for name, weight in self.decoder.named_parameters():
            weight.copy_(stored[f"weight.{name}"])
        for name, weight in self._weights.items():
            moments = {part: stored[f"{part}.{name}"] for part in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = {"step": torch.tensor(float(self.step)), **moments}


def learning_rate(step: int, steps: int) -> float:
    """Up to the peak in a straight line, then down along half a cosine."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    along = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * along)) / 2
