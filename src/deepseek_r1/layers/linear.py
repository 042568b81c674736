"""Linear layers, alone and in groups that read the same input. LoRA and quantised forms replace them by surgery."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops


class Linear(nn.Module):
    """y = x @ weight.T + bias, computed in the weight's dtype."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)


class LinearGroup(nn.Module):
    """Named linears over one input, such as q, k and v. One call, so that surgery may fuse them into one product."""

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in members.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., in_features) -> one output per member, in the order they were given."""
        return tuple(module(x) for module in self.children())


class PackedLinear(nn.Module):
    """A frozen `Linear` whose weight stands in the kernel's packed layout."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight = ops.PackedWeight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)


class PackedLinearGroup(nn.Module):
    """A frozen `LinearGroup` of plain linears, stacked by output rows into one packed weight: one product for all."""

    def __init__(self, group: LinearGroup) -> None:
        super().__init__()
        linears = [m for m in group.children() if isinstance(m, Linear)]
        self.sizes = [linear.out_features for linear in linears]
        self.weight = ops.PackedWeight(torch.cat([linear.weight.detach() for linear in linears]))
        self.bias: Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            zero = [torch.zeros(linear.out_features, dtype=linear.weight.dtype) for linear in linears]
            pairs = zip(linears, zero, strict=True)
            self.bias = torch.cat([z if linear.bias is None else linear.bias.detach() for linear, z in pairs])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., in_features) -> one output per member."""
        return torch.split(ops.linear(x, self.weight, self.bias), self.sizes, dim=-1)
