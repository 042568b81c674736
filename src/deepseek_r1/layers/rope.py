"""Rotary position embedding (Su et al. 2021) and the scalings of its frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops

Rotary = tuple[Tensor, Tensor]
"""cos and signed sin of a step's positions, each (T, 1, dim): the sin's first half carries the minus sign."""


class RotaryEmbedding(nn.Module):
    """Tables cos and signed sin of given positions, in the halves convention.

    `scaling` is "none", "linear" (positions divided by `factor`), "llama3" (Llama 3.1: low frequencies divided by
    `factor`, high ones kept, a smooth passage between) or "yarn" (Peng et al. 2023: the same idea, with the passage
    between the frequencies that turn `beta_fast` and `beta_slow` times over the original context).
    `attention_factor` multiplies both tables.
    """

    inverse_frequencies: Tensor

    def __init__(
        self,
        dim: int,
        theta: float,
        *,
        scaling: str = "none",
        factor: float = 1.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_max_position: int = 8192,
        frequency_divisors: tuple[float, ...] | None = None,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
        attention_factor: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.attention_factor = attention_factor
        frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim))
        if scaling == "linear":
            frequencies = frequencies / factor
        elif scaling == "llama3":
            wavelength = 2 * math.pi / frequencies
            smooth = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            smooth = smooth.clamp(0, 1)
            frequencies = (1 - smooth) * frequencies / factor + smooth * frequencies
        elif scaling == "yarn":
            bounds = [
                dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))
                for turns in (beta_fast, beta_slow)
            ]
            if truncate:
                bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
            low, high = max(bounds[0], 0), min(bounds[1], dim - 1)
            ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
            slow = ramp.clamp(0, 1)
            frequencies = slow * frequencies / factor + (1 - slow) * frequencies
        elif scaling != "none":
            raise ValueError(f"no rope scaling {scaling!r}")
        if frequency_divisors is not None:
            frequencies = frequencies / torch.tensor(frequency_divisors, dtype=torch.float32, device="cpu")
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> Rotary:
        """Positions (T,) -> cos (T, 1, dim), signed sin (T, 1, dim)."""
        return ops.rotary(positions, self.inverse_frequencies, self.attention_factor, self.dtype)
