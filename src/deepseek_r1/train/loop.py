"""The one training loop: accumulate, clip, step, save, resume. What is learnt is the objective's affair."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.scheduler import CosineWarmup, apply_rate
from deepseek_r1.train.adaptive import AdaptiveOptimizer
from deepseek_r1.train.optimizer import build_optimizer, clip_gradients, load_named_state, named_state
from deepseek_r1.train.policy import Policy, autocast
from deepseek_r1.train.saved import SavedRuns
from deepseek_r1.train.scaling import LossScaler

WEIGHT = "weight."
"""What the names of learnt tensors begin with in a checkpoint."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step: its loss is a sum, and `count` says over how many (tokens, as a rule)."""

    content: Any
    count: float
    tokens: int


class Objective(Protocol):
    """What a run learns. The loop asks for a step's micro-batches, then for the loss of each, in order."""

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """The parts of step `step`: the same ones whenever it is asked."""
        ...

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        """The summed loss of a part, and sums of whatever else is worth a curve, which are divided by all counts."""
        ...

    def finished(self, step: int) -> Mapping[str, float]:
        """Take note that a step is done; what it adds to the step's figures."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know: plain data."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Be as the objective was that gave `state`."""
        ...


class Loop:
    """A run from one step to the next. Everything that a resumed run needs is in `save`, to the bit."""

    def __init__(self, policy: Policy, objective: Objective, config: TrainConfig, steps: int) -> None:
        self.policy, self.objective, self.config, self.steps = policy, objective, config, steps
        self.step = 0
        self.bad_steps = 0
        self.optimizer = build_optimizer(policy.parameters.items(), config)
        self.scaler = LossScaler(config.scaling)
        self.adaptive = AdaptiveOptimizer(config.lr)
        self._rate = self._schedule()
        self._in_a_row = 0

    def _schedule(self) -> Callable[[int], None]:
        """Sets the learning rate before a step."""
        config = self.config
        if config.schedule == "adaptive":
            self.adaptive.attach(self.optimizer)
            return lambda step: None  # the loss sets it, after each step
        if config.schedule == "constant":
            apply_rate(self.optimizer, config.lr)
            return lambda step: None
        low = min(config.min_lr, config.lr)
        cosine = CosineWarmup(self.optimizer, round(config.warmup * self.steps), self.steps, config.lr, low)
        return cosine.step

    def run(self, saved: SavedRuns | None, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Train to the end, one figure per step, until `stop` says so between two steps; saves as it goes.

        Raises `DeepSeekError` when too many steps in a row have no finite gradient.
        """
        last_saved = self.step
        while self.step < self.steps and not stop():
            yield self._advance()
            if saved is not None and self.step - last_saved >= self.config.save_every:
                self.save(saved)
                last_saved = self.step
        if saved is not None and self.step > last_saved:
            self.save(saved)

    def _advance(self) -> dict[str, Any]:
        began = time.monotonic()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout's draws depend on the step alone
        parts = self.objective.micro_batches(self.step)
        count = math.fsum(part.count for part in parts)
        sums: dict[str, float] = {}
        total = 0.0
        self._rate(self.step)
        with self.policy.learning():
            for part in parts:
                with autocast(self.config):
                    loss, more = self.objective.loss(part)
                loss = loss / count
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
                for name, value in more.items():
                    sums[name] = sums.get(name, 0.0) + value / count
        learnt = [p for p in self.policy.parameters.values() if p.grad is not None]
        self.scaler.unscale(learnt)
        norm = clip_gradients(learnt, self.config.clip_norm or sys.float_info.max)
        finite = math.isfinite(norm) and math.isfinite(total)
        rate = self.optimizer.param_groups[0]["lr"]
        if finite:
            self.optimizer.step()
            self.policy.refresh()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update(finite)
        if self.config.schedule == "adaptive":
            self.adaptive.step(total)
        self._judge(finite, total, norm)
        sums |= self.objective.finished(self.step)
        self.step += 1
        seconds = time.monotonic() - began
        tokens = sum(part.tokens for part in parts)
        return {
            "step": self.step,
            "loss": total if math.isfinite(total) else None,
            "lr": rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "tokens": tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": seconds,
            "bad_steps": self.bad_steps,
            **{name: value if math.isfinite(value) else None for name, value in sums.items()},
        }

    def _judge(self, finite: bool, loss: float, norm: float) -> None:
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if finite:
            return
        self.bad_steps += 1
        log.warning("step %d: loss %s, gradient norm %s: nothing is learnt from it", self.step + 1, loss, norm)
        if self._in_a_row >= self.config.most_bad_steps:
            raise DeepSeekError(
                f"step {self.step + 1}: loss {loss}, gradient norm {norm}: no numbers, {self._in_a_row} steps in a row",
                remedy="lower lr, or look at the examples of these steps; the last checkpoint is from before",
            )

    def save(self, saved: SavedRuns) -> None:
        """Write a checkpoint of this moment."""
        tensors = {f"{WEIGHT}{name}": p.detach() for name, p in self.policy.parameters.items()}
        tensors |= named_state(self.optimizer, self.policy.parameters)
        state = {
            "step": self.step,
            "bad_steps": self.bad_steps,
            "scaler": self.scaler.state_dict(),
            "adaptive": self.adaptive.state_dict(),
            "objective": self.objective.state(),
        }
        saved.save(self.step, tensors, state)

    def resume(self, saved: SavedRuns) -> bool:
        """Go on from the newest checkpoint, if there is one; returns whether there was."""
        found = saved.latest()
        if found is None:
            return False
        for name, parameter in self.policy.parameters.items():
            value = found.tensors.get(f"{WEIGHT}{name}")
            if value is None or value.shape != parameter.shape:
                raise DeepSeekError(
                    f"{saved.folder}: the checkpoint of step {found.step} has no {name} of this shape",
                    remedy="give the settings that the run was started with, or another out folder",
                )
            parameter.data.copy_(value)
        load_named_state(self.optimizer, self.policy.parameters, found.tensors)
        self.step, self.bad_steps = found.state["step"], found.state["bad_steps"]
        self.scaler.load_state_dict(found.state["scaler"])
        self.adaptive.load_state_dict(found.state["adaptive"])
        self.objective.load_state(found.state["objective"])
        self.policy.refresh()
        return True
