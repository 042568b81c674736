"""Learning rates over the epochs of a run: a linear warm-up, then half a cosine down to the last rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from deepseek_r1.core.errors import ConfigError


def apply_rate(optimizer: Optimizer, rate: float) -> list[float]:
    """Set every parameter group's `lr` to `rate` times the group's `lr_scale` (1 where it has none); returns them.

    Raises `ConfigError` for an `lr_scale` that is no finite number of at least 0.
    """
    scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    for scale in scales:
        checked_number("lr_scale", scale, 0.0)
    rates = [rate * scale for scale in scales]
    for group, each in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = each
    return rates


def checked_number(name: str, value: object, least: float, most: float = math.inf, *, above: bool = False) -> float:
    """`value` as a float if it is a finite number from `least` (or `above` it) to `most`; else a `ConfigError`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not max(least, -sys.float_info.max) <= value <= min(most, sys.float_info.max)
        or (above and value == least)
    ):
        bound = ("above " if above else "of at least ") + repr(least)
        bound += f" and at most {most!r}" if most < math.inf else ""
        raise ConfigError(f"{name} must be a finite number {bound}, not {str(value)[:100]}")
    return float(value)


class CosineWarmup:
    """Learning rate `max_lr` after `warmup_epochs`, down along half a cosine to `min_lr` at `total_epochs`.

    With w = warmup_epochs, t = total_epochs, and the epoch e, of which fractions count:

        e               rate                                                                       with the defaults
        0               min_lr                                                                     3e-6
        0 < e < w       min_lr + (max_lr - min_lr) * e / w                                         1.812e-4 at e = 3
        w               max_lr                                                                     3e-4
        w < e < t       min_lr + (max_lr - min_lr) * (1 + cos(pi * (e - w) / (t - w))) / 2         1.515e-4 at e = 27.5
        e >= t          min_lr                                                                     3e-6

    The warm-up begins at `min_lr`, not at 0: an epoch at a rate of 0 would be wasted. A parameter group with an
    `lr_scale` gets that multiple of the rate. Building it sets the rate of epoch 0. Raises `ConfigError`, naming the
    argument, for values that make no schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float = 5,
        total_epochs: float = 50,
        max_lr: float = 3e-4,
        min_lr: float = 3e-6,
    ) -> None:
        self.optimizer = optimizer
        self.warmup_epochs = checked_number("warmup_epochs", warmup_epochs, 0.0)
        self.total_epochs = checked_number("total_epochs", total_epochs, self.warmup_epochs, above=True)
        self.max_lr = checked_number("max_lr", max_lr, 0.0, above=True)
        self.min_lr = checked_number("min_lr", min_lr, 0.0, self.max_lr)
        self.epoch = 0.0
        self._last = apply_rate(optimizer, self.rate(0.0))

    def rate(self, epoch: float) -> float:
        """The learning rate at `epoch`, for a group without an `lr_scale`."""
        if epoch >= self.total_epochs:
            return self.min_lr
        if epoch < self.warmup_epochs:
            share = epoch / self.warmup_epochs
        else:
            along = (epoch - self.warmup_epochs) / (self.total_epochs - self.warmup_epochs)
            share = (1.0 + math.cos(math.pi * along)) / 2.0
        mixed = self.min_lr * (1.0 - share) + self.max_lr * share
        return min(self.max_lr, max(self.min_lr, mixed))  # a sum of two rounded products may pass its ends by a bit

    def step(self, epoch: float | None = None) -> None:
        """Go to `epoch` (fractions count: 2.5 is half way through the third), or one whole epoch on.

        Raises `ConfigError` for an epoch below 0 or none at all.
        """
        self.epoch = self.epoch + 1.0 if epoch is None else checked_number("epoch", epoch, 0.0)
        self._last = apply_rate(self.optimizer, self.rate(self.epoch))

    def get_last_lr(self) -> list[float]:
        """The rate that each parameter group was given last."""
        return list(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Where in the schedule it is. The schedule itself is what it was built with."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where the schedule that gave `state` was. Raises `ConfigError` for what `state_dict` never gives."""
        self.step(checked_number("epoch", state.get("epoch"), 0.0))
