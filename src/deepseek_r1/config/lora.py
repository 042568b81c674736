"""Settings of low-rank adapters (LoRA)."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option
from deepseek_r1.core.errors import ConfigError

ALL_LINEAR = "all-linear"
"""Stands for every linear of attention and MLP."""


class LoraConfig(Config):
    """What a new adapter is: its rank, what its product counts, and where it sits."""

    r: int = option(default=16, help="rank of an adapter's factors", minimum=1, maximum=4096)
    alpha: float = option(default=32.0, help="an adapter's product counts alpha / r", minimum=0.0, maximum=1e6)
    targets: tuple[str, ...] = option(
        default=("q_proj", "v_proj"),
        help=f"linears that get an adapter, by the end of their names, or {ALL_LINEAR} for those of attention and MLP",
        metavar="NAME,...",
    )
    dropout: float = option(
        default=0.1, help="share of an adapter's inputs that training drops", minimum=0, maximum=0.9
    )

    def check(self) -> None:
        """An adapter sits somewhere."""
        if not self.targets:
            raise ConfigError("targets names no linear", remedy=f"for example q_proj,v_proj, or {ALL_LINEAR}")

    @property
    def scale(self) -> float:
        """What B(A(x)) is multiplied by."""
        return self.alpha / self.r
