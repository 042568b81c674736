"""A learning rate that follows the loss: up slowly while the loss falls, down quickly when it rises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.scheduler import apply_rate, checked_number


class AdaptiveOptimizer:
    """Sets the learning rate of an optimizer by the trend of the loss, between two bounds.

    Two exponential means of the loss are kept; `fast` and `slow` are what each keeps of itself in a step. While the
    fast mean is below the slow one, the loss falls: the rate is multiplied by `rise`, up to `max_factor * base_lr`.
    While it is above, the loss rises: by `decay`, down to `min_factor * base_lr`. Where both are equal, the rate stays.
    A loss that is no finite number counts as one that rises, and leaves the means alone. The same losses give the same
    rates, bit for bit. Raises `ConfigError`, naming the argument, for values that make no rule.
    """

    def __init__(
        self,
        base_lr: float = 1e-4,
        *,
        rise: float = 1.01,
        decay: float = 0.95,
        min_factor: float = 0.01,
        max_factor: float = 10.0,
        fast: float = 0.9,
        slow: float = 0.99,
    ) -> None:
        self.base_lr = checked_number("base_lr", base_lr, 0.0, above=True)
        self.rise = checked_number("rise", rise, 1.0)
        self.decay = checked_number("decay", decay, 0.0, 1.0, above=True)
        self.min_factor = checked_number("min_factor", min_factor, 0.0, 1.0, above=True)
        self.max_factor = checked_number("max_factor", max_factor, 1.0)
        # From a half on, a mean of two finite losses can't overflow.
        self.slow = checked_number("slow", slow, 0.5, math.nextafter(1.0, 0.0))
        self.fast = checked_number("fast", fast, 0.5, math.nextafter(self.slow, 0.0))
        self.bad_losses = 0
        """How many losses were no finite numbers."""
        self._factor = 1.0
        self._fast_mean: float | None = None
        self._slow_mean: float | None = None
        self._optimizer: Optimizer | None = None

    @property
    def lr(self) -> float:
        """The learning rate now, for a group without an `lr_scale`."""
        return self.base_lr * self._factor

    def attach(self, optimizer: Optimizer) -> None:
        """Set the rate of `optimizer` (each group's times its `lr_scale`) now and after every step."""
        apply_rate(optimizer, self.lr)
        self._optimizer = optimizer

    def step(self, loss: float) -> float:
        """Take in the loss of a step; sets the attached optimizer's rate for the next one, and returns it.

        Raises `ConfigError` where no optimizer is attached.
        """
        if self._optimizer is None:
            raise ConfigError("no optimizer is attached to AdaptiveOptimizer", remedy="call attach(optimizer) first")
        if not math.isfinite(loss):
            self.bad_losses += 1
            self._move(self.decay)
        else:
            fast = self._fast_mean = _mean(self._fast_mean, loss, self.fast)
            slow = self._slow_mean = _mean(self._slow_mean, loss, self.slow)
            if fast != slow:
                self._move(self.rise if fast < slow else self.decay)
        apply_rate(self._optimizer, self.lr)
        return self.lr

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, besides what it was built with; numbers that JSON keeps exactly."""
        return {
            "factor": self._factor,
            "fast_mean": self._fast_mean,
            "slow_mean": self._slow_mean,
            "bad_losses": self.bad_losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave `state` would. Raises `ConfigError` for what `state_dict` never gives.

        A rate beyond this one's bounds, which may be others, is brought within them.
        """
        factor = checked_number("factor", state.get("factor"), 0.0, above=True)
        means = [state.get("fast_mean"), state.get("slow_mean")]
        if means != [None, None]:
            means = [checked_number("a mean of the loss", mean, -math.inf) for mean in means]
        bad = state.get("bad_losses")
        if type(bad) is not int or bad < 0:
            raise ConfigError(f"bad_losses must be an integer of at least 0, not {bad!r}")
        self._fast_mean, self._slow_mean = means
        self.bad_losses = bad
        self._factor = factor
        self._move(1.0)
        if self._optimizer is not None:
            apply_rate(self._optimizer, self.lr)

    def _move(self, by: float) -> None:
        self._factor = min(self.max_factor, max(self.min_factor, self._factor * by))


def _mean(mean: float | None, loss: float, kept: float) -> float:
    if mean is None:
        return float(loss)
    new = 1.0 - kept
    return mean + (new * loss - new * mean)  # of a loss that stays, exactly that loss: no trend out of rounding
