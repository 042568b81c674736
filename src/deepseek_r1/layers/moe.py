"""Mixture of experts (DeepSeekMoE, Dai et al. 2024): a router, experts as one grouped product, and a shared MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import QuantisedWeight
from deepseek_r1.layers.mlp import GatedMLP


class Router(nn.Module):
    """Chooses `active` of `experts` for each token and weighs them.

    Always in float32: a tie that rounding makes would send a token elsewhere. `score` is "softmax" or "sigmoid";
    `normalise` divides the weights by their sum, `scale` multiplies them. With `bias` (no gradient) the choice can be
    balanced without an auxiliary loss (DeepSeek-V3): it moves the choice, never the weights.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        active: int,
        *,
        score: str,
        normalise: bool,
        scale: float,
        groups: int,
        active_groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.active, self.score, self.normalise, self.scale = active, score, normalise, scale
        self.experts, self.groups, self.active_groups = experts, groups, active_groups
        self.weight: Tensor | ops.PackedWeight = nn.Parameter(torch.empty(experts, dim, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(experts, dtype=torch.float32), requires_grad=False) if bias else None

    def pack(self, weight: ops.PackedWeight | None = None) -> None:
        """Freeze the weight into the kernel's layout: into `weight`, which holds it already, or a new packed copy."""
        if isinstance(self.weight, Tensor):
            packed = ops.PackedWeight([self.weight.detach()]) if weight is None else weight
            del self.weight  # a module's parameter can't become something else
            self.weight = packed

    def scores(self, x: Tensor) -> Tensor:
        """x (T, dim) -> (T, experts): what the choice and the weights are made from."""
        return ops.scores(ops.linear(ops.scaled(x, 1.0, torch.float32), self.weight), self.score)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, dim) -> weights (T, active), expert ids (T, active), ascending, and the scores (T, experts).

        Nothing that follows needs the scores: they are for `balance.observe_routing`, whose hooks see what is returned.
        """
        scores = self.scores(x)
        chosen = ops.route(scores, self.bias, self.active, groups=self.groups, active_groups=self.active_groups)
        return ops.route_weights(scores, chosen, normalise=self.normalise, scale=self.scale), chosen, scores


class ExpertLinear(nn.Module):
    """A linear map of its own for each expert, without bias.

    `quantised` is what `pack_linears` packs in place of the weight, where it is given; `weight` is then empty.
    """

    quantised: list[QuantisedWeight] | None = None

    def __init__(self, experts: int, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features, dtype=dtype))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (N, in_features) sorted by expert, `ends` (experts,) -> (N, out_features)."""
        return ops.expert_linear(x, self.weight, ends)

    def frozen(self) -> Tensor | list[QuantisedWeight]:
        """The weights to pack, expert by expert."""
        return self.weight.detach() if self.quantised is None else self.quantised


class PackedExpertLinear(nn.Module):
    """A frozen `ExpertLinear` whose weights stand in the kernel's packed layout."""

    def __init__(self, weight: ops.PackedStack) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def of(cls, linear: ExpertLinear) -> PackedExpertLinear:
        """`linear`, packed."""
        return cls(ops.PackedStack(linear.frozen()))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (N, in_features) sorted by expert, `ends` (experts,) -> (N, out_features)."""
        return ops.expert_linear(x, self.weight, ends)


class Experts(nn.Module):
    """Gated MLPs, one per expert, over the tokens sorted by expert: no loop over experts and no capacity limit."""

    def __init__(
        self,
        dim: int,
        experts: int,
        hidden: int,
        *,
        activation: str,
        dtype: torch.dtype,
        activation_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activation_dtype = activation_dtype
        self.gate_proj = ExpertLinear(experts, dim, hidden, dtype=dtype)
        self.up_proj = ExpertLinear(experts, dim, hidden, dtype=dtype)
        self.down_proj = ExpertLinear(experts, hidden, dim, dtype=dtype)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, totals: Tensor) -> Tensor:
        """x (T, dim), weights and chosen (T, active) -> (T, dim) in float32.

        `totals` (experts,) int64 grow by what is chosen. A token's results are added in the order of its expert ids,
        whatever else is in the batch.
        """
        sources, places, ends = ops.by_expert(chosen, totals)
        rows = ops.take_rows(x, sources)
        gate, up = self.gate_proj(rows, ends), self.up_proj(rows, ends)
        out = self.down_proj(ops.gated(self.activation, gate, up, self.activation_dtype), ends)
        return ops.combine(out, places, weights)


class MoE(nn.Module):
    """Routed experts plus a shared MLP that every token passes.

    `expert_tokens` counts how many tokens each expert has had; it only grows.
    """

    expert_tokens: Tensor

    def __init__(self, router: Router, experts: Experts, shared: GatedMLP | None) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        count = router.experts
        self.register_buffer("expert_tokens", torch.zeros(count, dtype=torch.int64, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, dim) -> (T, dim)."""
        weights, chosen, _ = self.router(x)
        out: Tensor = self.experts(x, weights, chosen, self.expert_tokens)
        return out if self.shared is None else ops.add(out, self.shared(x))
