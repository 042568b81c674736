"""Layers that learn: float32 masters, and the form that products read, derived from them after each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops


class TrainedLinear(nn.Module):
    """y = x @ weight.T + bias, computed in `dtype` from a packed copy of the float32 master `weight` (out, in).

    The packed copy is what the engine reads too, at addresses that stay the same; `refresh` brings it up to date.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self._packed = ops.PackedWeight([self.weight.detach().to(dtype)])

    @property
    def packed(self) -> ops.PackedWeight:
        """What products read."""
        return self._packed

    def refresh(self) -> None:
        """Bring what products read up to date with the master."""
        self._packed.repack(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        bias = (
            self.bias if self.bias is None else ops.scaled(ops.scaled(self.bias, 1.0, self.dtype), 1.0, torch.float32)
        )
        return ops.trained_linear(x, self.weight, self._packed, bias)


class TrainedEmbedding(nn.Module):
    """The table of token vectors with a float32 master; rows are rounded to `dtype` as they are looked up."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids (T,) -> (T, dim)."""
        return ops.scaled(ops.embedding(ids, self.weight), 1.0, self.dtype)


class TrainedNorm(nn.Module):
    """A root-mean-square norm with a float32 master of its weight, computed with it in `dtype`."""

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return ops.rms_norm(x, ops.scaled(self.weight, 1.0, self.dtype), self.eps)
