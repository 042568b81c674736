"""Loss scaling for fp16: gradients too small for the format are computed larger, and divided before the step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_r1.config.optimizer import MAX_LOSS_SCALE, Scaling, parse_scaling
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.scheduler import checked_number

FIRST_SCALE = 2.0**16
"""What a dynamic scale begins with."""

GROW_EVERY = 2000
"""Steps with finite gradients in a row after which a dynamic scale is doubled."""


class LossScaler:
    """Scales the loss by a number that stays, by a dynamic one, or (None) not at all.

    In each step: `scale` the loss, backward, `unscale`, skip the optimizer's step unless all gradients are finite, and
    `update`. A dynamic scale is halved after each step with gradients that are not finite, and doubled after
    `GROW_EVERY` others in a row, within 1 to 2^24. Source: https://arxiv.org/abs/1710.03740, section 3.2. Raises
    `ConfigError` for another `scaling`.
    """

    def __init__(self, scaling: Scaling) -> None:
        scaling = parse_scaling(scaling)
        self.dynamic = scaling == "dynamic"
        self.factor = FIRST_SCALE if isinstance(scaling, str) else scaling or 1.0
        """What the loss is multiplied by; 1 where it isn't scaled."""
        self._good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to run backward from."""
        return loss if self.factor == 1.0 else loss * self.factor

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide all gradients by the scale, in place: once per step, after the last backward."""
        if self.factor == 1.0:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.factor)

    def update(self, finite: bool) -> None:
        """Note whether this step's gradients were all finite; moves a dynamic scale for the next step."""
        if not self.dynamic:
            return
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self.factor = max(1.0, self.factor / 2.0)
        elif self._good_steps == GROW_EVERY:
            self.factor, self._good_steps = min(MAX_LOSS_SCALE, self.factor * 2.0), 0

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on."""
        return {"factor": self.factor, "good_steps": self._good_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave `state`. A scale that is not dynamic stays what it was built with.

        Raises `ConfigError` for what `state_dict` never gives.
        """
        factor = checked_number("factor", state.get("factor"), 1.0, MAX_LOSS_SCALE)
        good = state.get("good_steps")
        if type(good) is not int or not 0 <= good < GROW_EVERY:
            raise ConfigError(f"good_steps must be an integer from 0 to {GROW_EVERY - 1}, not {good!r}")
        if self.dynamic:
            self.factor, self._good_steps = factor, good
