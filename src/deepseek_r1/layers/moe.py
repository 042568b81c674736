"""Mixture of experts (DeepSeekMoE, Dai et al. 2024): a router, experts as one grouped product, and a shared MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek_r1.kernels import ops
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
        self.groups, self.active_groups = groups, active_groups
        self.weight = nn.Parameter(torch.empty(experts, dim, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(experts, dtype=torch.float32), requires_grad=False) if bias else None

    def scores(self, x: Tensor) -> Tensor:
        """x (T, dim) -> (T, experts): what the choice and the weights are made from."""
        logits = ops.linear(x, self.weight)
        return logits.sigmoid() if self.score == "sigmoid" else logits.softmax(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, dim) -> weights (T, active), expert ids (T, active), ascending, and the scores (T, experts).

        Nothing that follows needs the scores: they are for `balance.observe_routing`, whose hooks see what is returned.
        """
        scores = self.scores(x)
        chosen = ops.route(scores, self.bias, self.active, groups=self.groups, active_groups=self.active_groups)
        weights = scores.gather(1, chosen)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale, chosen, scores


class ExpertLinear(nn.Module):
    """A linear map of its own for each expert, without bias."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features, dtype=dtype))

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

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
        """x (T, dim), weights and chosen (T, active), counts (experts,) of `chosen` -> (T, dim) in float32.

        A token's results are added in the order of its expert ids, whatever else is in the batch.
        """
        tokens, active = chosen.shape
        order = chosen.reshape(-1).argsort(stable=True)
        ends = counts.cumsum(0, dtype=torch.int32)
        rows = x[order // active]
        gate, up = self.gate_proj(rows, ends), self.up_proj(rows, ends)
        gate, up = gate.to(self.activation_dtype), up.to(self.activation_dtype)
        out = self.down_proj(ops.gated(self.activation, gate, up), ends).float()
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        parts = out[back].view(tokens, active, -1) * weights.unsqueeze(-1)
        total: Tensor = parts[:, 0]
        for slot in range(1, active):
            total = total + parts[:, slot]
        return total


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
        count = router.weight.shape[0]
        self.register_buffer("expert_tokens", torch.zeros(count, dtype=torch.int64, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, dim) -> (T, dim)."""
        weights, chosen, _ = self.router(x)
        counts = torch.bincount(chosen.reshape(-1), minlength=len(self.expert_tokens))
        self.expert_tokens += counts
        out: Tensor = self.experts(x, weights, chosen, counts)
        return out if self.shared is None else out + self.shared(x)
