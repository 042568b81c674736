"""Settings of the optimizer: number format, loss scaling, and the numbers of AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from deepseek_r1.config.base import Config, option
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.core.registry import nearest

TRAINING_PRECISIONS = ("bf16", "fp16", "fp32")
"""Number formats that a training step can compute in. Weights and moments are always kept in fp32."""

MAX_LOSS_SCALE = 2.0**24
"""The largest loss scale; the smallest is 1."""

Scaling = float | Literal["dynamic"] | None
"""A factor that stays, "dynamic", or None: the loss is not scaled."""

if TYPE_CHECKING:
    _GivenScaling = float | str | None
else:
    _GivenScaling = str | None  # a field has one kind; a number is turned into its text before it is checked

_PLANNED = ("fp16_fp8_mixed", "fp8")


def parse_scaling(given: float | str | None) -> Scaling:
    """What `loss_scaling` means. Raises `ConfigError` for anything but "dynamic", none, or a number from 1 to 2^24."""
    if given is None or given == "dynamic":
        return "dynamic" if given else None
    try:
        if isinstance(given, bool):
            raise ValueError("true is no number")
        scale = float(given)
        if not 1.0 <= scale <= MAX_LOSS_SCALE:
            raise ValueError("outside the bounds")
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(
            f"loss_scaling must be a number from 1 to {MAX_LOSS_SCALE:.0f}, 'dynamic' or none, not {str(given)[:100]!r}"
        ) from None
    return scale


class OptimizerConfig(Config):
    """How weights are trained: AdamW with clipped gradients, and the number format of a step.

    Weights, gradients and moments are fp32 in every format; `precision` is what the layers compute in. Raises
    `ConfigError` for values outside their bounds, `UnsupportedError` for formats that are not there yet.
    """

    precision: str = option(
        default="fp32", help="number format that training steps compute in", metavar="|".join(TRAINING_PRECISIONS)
    )
    loss_scaling: _GivenScaling = option(
        default=None,
        help="factor that keeps small fp16 gradients from vanishing: a number such as 128, or 'dynamic'; only fp16 has "
        "a use for it",
        metavar="NUMBER|dynamic",
    )
    activation_checkpointing: bool = option(
        default=False, help="compute each block again in the backward pass instead of keeping its activations"
    )
    lr: float = option(default=3e-4, help="learning rate (its peak, under a schedule)", minimum=1e-12, maximum=1.0)
    weight_decay: float = option(
        default=0.01, help="AdamW's decay; norms and biases have none", minimum=0.0, maximum=1.0
    )
    beta1: float = option(
        default=0.9, help="share that the mean of the gradients keeps in a step", minimum=0.0, maximum=0.99999
    )
    beta2: float = option(
        default=0.95, help="share that the mean of their squares keeps in a step", minimum=0.0, maximum=0.99999
    )
    eps: float = option(default=1e-8, help="AdamW's smallest denominator", minimum=1e-15, maximum=1.0)
    clip_norm: float | None = option(
        default=1.0, help="largest norm of all gradients together", minimum=1e-6, maximum=1e6
    )
    accumulate: int = option(
        default=1, help="batches whose gradients are added up before a step", minimum=1, maximum=65536
    )

    def __post_init__(self) -> None:
        """Take a number for `loss_scaling` too: it is kept as its text."""
        if isinstance(self.loss_scaling, int | float) and not isinstance(self.loss_scaling, bool):
            object.__setattr__(self, "loss_scaling", str(self.loss_scaling))
        super().__post_init__()

    @property
    def scaling(self) -> Scaling:
        """`loss_scaling` as `train.scaling.LossScaler` takes it."""
        return parse_scaling(self.loss_scaling)

    def check(self) -> None:
        """Refuse formats that are not there, and a loss scale that nothing would use."""
        if self.precision in _PLANNED:
            raise UnsupportedError(
                f"precision={self.precision!r} is not there yet",
                remedy="use precision='bf16', or precision='fp16' with loss_scaling='dynamic'",
            )
        if self.precision not in TRAINING_PRECISIONS:
            raise ConfigError(
                f"precision {self.precision[:100]!r} is not known{nearest(self.precision, list(TRAINING_PRECISIONS))}",
                remedy=f"available: {', '.join(TRAINING_PRECISIONS)}",
            )
        if self.scaling is not None and self.precision != "fp16":
            raise ConfigError(
                f"loss_scaling has no meaning in precision={self.precision!r}: its gradients don't vanish",
                remedy="leave it out, or use precision='fp16'",
            )
