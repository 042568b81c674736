"""Linear layers, alone and in groups that read the same input. LoRA and quantised forms replace them by surgery."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import QuantisedWeight


class Linear(nn.Module):
    """y = x @ weight.T + bias, computed in the weight's dtype.

    `quantised` is what `pack_linears` packs in place of the weight, where it is given; `weight` is then empty.
    """

    quantised: QuantisedWeight | None = None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)

    def frozen(self) -> Tensor | QuantisedWeight:
        """The weight to pack."""
        return self.weight.detach() if self.quantised is None else self.quantised

    @property
    def format(self) -> object:
        """What has to agree between weights that are packed into one."""
        return self.weight.dtype if self.quantised is None else self.quantised.format


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

    def __init__(self, weight: ops.PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = _as_read(bias, weight)

    @classmethod
    def of(cls, linear: Linear) -> PackedLinear:
        """`linear`, packed."""
        return cls(ops.PackedWeight([linear.frozen()]), None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)


class PackedLinearGroup(nn.Module):
    """A frozen `LinearGroup` of plain linears, stacked by output rows into one packed weight: one product for all."""

    def __init__(self, weight: ops.PackedWeight, bias: Tensor | None, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = _as_read(bias, weight)
        self.names, self.sizes = tuple(sizes), list(sizes.values())

    @classmethod
    def of(cls, group: LinearGroup) -> PackedLinearGroup:
        """`group`, packed. Its members' formats agree."""
        linears = [m for m in group.children() if isinstance(m, Linear)]
        bias: Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            zero = [torch.zeros(linear.out_features, dtype=linear.weight.dtype) for linear in linears]
            pairs = zip(linears, zero, strict=True)
            bias = torch.cat([z if linear.bias is None else linear.bias.detach() for linear, z in pairs])
        sizes = {name: m.out_features for name, m in group.named_children() if isinstance(m, Linear)}
        return cls(ops.PackedWeight([linear.frozen() for linear in linears]), bias, sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., in_features) -> one output per member."""
        return ops.parts(ops.linear(x, self.weight, self.bias), self.sizes)

    def gated(self, x: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
        """x (T, in_features) -> activation(first member) * second one (T, size), of two members of one size."""
        return ops.gated_linear(activation, x, self.weight, self.bias, dtype)


def _as_read(bias: Tensor | None, weight: ops.PackedWeight) -> Tensor | None:
    """The bias as the product with this weight adds it: in float32 by native kernels, whatever the weight's dtype."""
    return bias if bias is None or weight.blob is None else bias.float()


class PackedEmbedding(nn.Module):
    """The table of token vectors in the kernel's packed layout, which it may share with the output layer."""

    def __init__(self, weight: ops.PackedWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (T,) -> (T, dim)."""
        return ops.embedding(ids, self.weight)
