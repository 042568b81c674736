"""The gated feed-forward block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.linear import Linear, LinearGroup, PackedLinearGroup


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020): "silu" makes SwiGLU, "gelu_tanh" GeGLU."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bias: bool,
        activation: str,
        dtype: torch.dtype,
        activation_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = LinearGroup(
            {name: Linear(dim, hidden, bias=bias, dtype=dtype) for name in ("gate_proj", "up_proj")}
        )
        self.down_proj = Linear(hidden, dim, bias=bias, dtype=dtype)
        self.activation_dtype = activation_dtype

    def forward(self, x: Tensor) -> Tensor:
        """x (T, dim) -> (T, dim)."""
        return self.down_proj(self._gated(x))  # type: ignore[no-any-return]

    def _gated(self, x: Tensor) -> Tensor:
        if isinstance(self.gate_up, PackedLinearGroup):  # one product
            return self.gate_up.gated(x, self.activation, self.activation_dtype)
        gate, up = self.gate_up(x)
        return ops.gated(self.activation, gate, up, self.activation_dtype)
