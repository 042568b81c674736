"""Root-mean-square norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops


class RMSNorm(nn.Module):
    """y = weight * x / rms(x) over the last dimension, in float32 inside."""

    def __init__(self, dim: int, eps: float, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return ops.rms_norm(x, self.weight, self.eps)
