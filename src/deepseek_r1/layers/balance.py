"""Keeping experts evenly used while a model learns: what the routers did, how even it was, and three ways to even it.

`scores` are a router's (T, experts), softmax or sigmoid; `chosen` its expert ids (T, active).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepseek_r1.layers.moe import Router


@dataclass(frozen=True)
class Routing:
    """What one router did in a forward pass: its scores (T, experts), with their gradient, and chosen (T, active)."""

    router: Router
    scores: Tensor
    chosen: Tensor

    @property
    def counts(self) -> Tensor:
        """How many tokens each expert got, (experts,)."""
        return torch.bincount(self.chosen.reshape(-1), minlength=self.scores.shape[1])


@contextmanager
def observe_routing(model: nn.Module) -> Iterator[dict[str, Routing]]:
    """Collects the `Routing` of every router below `model` by its dotted name, each forward pass in place of the last.

    Inside the `with`, so that the losses below can be added to the model's own before `backward`.
    """
    seen: dict[str, Routing] = {}

    def collect(name: str, router: Router, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, chosen, scores = output
        seen[name] = Routing(router, scores, chosen)

    handles = [
        module.register_forward_hook(lambda router, _, output, name=name: collect(name, router, output))
        for name, module in model.named_modules()
        if isinstance(module, Router)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def update_bias(router: Router, counts: Tensor, rate: float) -> None:
    """Balance without an auxiliary loss (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2).

    Experts that got less than the mean load, by `counts` (experts,) of one step's whole batch, gain `rate` of bias;
    those that got more lose it. The bias moves the choice only, so no gradient is bent. Neither source centres it.
    Raises `ValueError` for a router without a bias.
    """
    if router.bias is None:
        raise ValueError("this router has no bias to balance with: it is built with bias=True")
    load = counts.to(router.bias.dtype)
    router.bias.add_(torch.sign(load.mean() - load), alpha=rate)


def load_balance_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """The auxiliary loss of the Switch Transformer (Fedus et al. 2021) for several active experts, as in DeepSeek-V2.

    experts * sum_e f_e P_e, with f_e the share of the choices that fell on expert e and P_e its mean share of a token's
    scores (sigmoid scores are divided by their sum, as DeepSeek-V3 does). 1 when even; the gradient flows through P.
    """
    experts = scores.shape[1]
    share = torch.bincount(chosen.reshape(-1), minlength=experts).to(scores.dtype) / chosen.numel()
    return experts * (share * _mean_distribution(scores)).sum()


def entropy_loss(scores: Tensor) -> Tensor:
    """One less the normalised entropy of the mean distribution over experts: 0 when even, 1 when one expert has all.

    The global entropy loss of LIMoE (Mustafa et al. 2022), brought to [0, 1]. It evens out the scores, not the choices.
    """
    return 1 - _normalised_entropy(_mean_distribution(scores))


def utilisation(counts: Tensor) -> float:
    """How even the loads `counts` (experts,) are: their entropy over that of equal loads, from 0 to 1.

    1 is perfectly even, 0 is one expert for everything. Raises `ValueError` when nothing was counted.
    """
    total = counts.sum()
    if total == 0:
        raise ValueError("no tokens were counted")
    return float(_normalised_entropy(counts.double() / total))


def _mean_distribution(scores: Tensor) -> Tensor:
    return (scores / scores.sum(-1, keepdim=True)).mean(0)


def _normalised_entropy(shares: Tensor) -> Tensor:
    if len(shares) == 1:
        return torch.ones_like(shares).squeeze()  # one expert is used as evenly as can be
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy / math.log(len(shares))
