"""Rotary position embedding (Su et al. 2021) and the scalings of its frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Tables cos and signed sin of given positions, in the halves convention.

    `scaling` is "none", "linear" (positions divided by `factor`) or "llama3" (Llama 3.1: low frequencies divided by
    `factor`, high ones kept, a smooth passage between).
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
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        if scaling == "linear":
            frequencies = frequencies / factor
        elif scaling == "llama3":
            wavelength = 2 * math.pi / frequencies
            smooth = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            smooth = smooth.clamp(0, 1)
            frequencies = (1 - smooth) * frequencies / factor + smooth * frequencies
        elif scaling != "none":
            raise ValueError(f"no rope scaling {scaling!r}")
        if frequency_divisors is not None:
            frequencies = frequencies / torch.tensor(frequency_divisors, dtype=torch.float32)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (T,) -> cos (T, 1, dim), signed sin (T, 1, dim): its first half carries the minus sign."""
        angles = positions.float().unsqueeze(-1) * self.inverse_frequencies  # (T, dim / 2)
        cos, sin = angles.cos(), angles.sin()
        table = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return table[0].unsqueeze(1).to(self.dtype), table[1].unsqueeze(1).to(self.dtype)
