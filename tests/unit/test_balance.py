"""Expert balancing: the formulae against numpy, their gradients, what the observer sees, and loads that become even."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek_r1.layers import Experts, GatedMLP, MoE, Router
from deepseek_r1.layers.balance import (
    Routing,
    entropy_loss,
    load_balance_loss,
    observe_routing,
    update_bias,
    utilisation,
)

EXPERTS, ACTIVE, DIM = 6, 2, 10


def make_router(*, score: str = "sigmoid", bias: bool = True, seed: int = 0) -> Router:
    torch.manual_seed(seed)
    router = Router(DIM, EXPERTS, ACTIVE, score=score, normalise=True, scale=1.0, groups=1, active_groups=1, bias=bias)
    torch.nn.init.normal_(router.weight)
    if router.bias is not None:
        torch.nn.init.zeros_(router.bias)
    return router


def drawn(tokens: int = 50, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid scores and the experts of each token, ascending."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, EXPERTS, generator=generator, dtype=torch.float64)
    return scores, scores.topk(ACTIVE).indices.sort(-1).values


def numpy_shares(scores: np.ndarray) -> np.ndarray:
    return (scores / scores.sum(1, keepdims=True)).mean(0)


def test_update_bias_steps_against_the_load() -> None:
    router = make_router()
    with torch.no_grad():
        router.bias.copy_(torch.tensor([0.5, -0.25, 0.0, 1.0, 0.0, 0.0]))
    before = router.bias.clone()
    update_bias(router, torch.tensor([10, 0, 5, 5, 7, 3]), 0.01)  # the mean is 5
    np.testing.assert_allclose((router.bias - before).numpy(), [-0.01, 0.01, 0, 0, -0.01, 0.01], atol=1e-7)
    assert not router.bias.requires_grad


def test_a_router_without_bias_has_nothing_to_update() -> None:
    with pytest.raises(ValueError, match="bias=True"):
        update_bias(make_router(bias=False), torch.ones(EXPERTS), 0.01)


def test_load_balance_loss_is_its_formula() -> None:
    scores, chosen = drawn()
    share = np.zeros(EXPERTS)
    for expert in chosen.numpy().ravel():
        share[expert] += 1 / chosen.numel()
    want = EXPERTS * float((share * numpy_shares(scores.numpy())).sum())
    assert float(load_balance_loss(scores, chosen)) == pytest.approx(want, rel=1e-12)


def test_load_balance_loss_is_one_when_even_and_the_number_of_experts_when_not() -> None:
    even = torch.full((EXPERTS, EXPERTS), 0.7)
    assert float(load_balance_loss(even, torch.arange(EXPERTS).unsqueeze(1))) == pytest.approx(1)
    one = torch.zeros(4, EXPERTS)
    one[:, 2] = 0.9
    assert float(load_balance_loss(one, torch.full((4, 1), 2))) == pytest.approx(EXPERTS)


def test_entropy_loss_is_its_formula() -> None:
    scores, _ = drawn()
    shares = numpy_shares(scores.numpy())
    want = 1 + float((shares * np.log(shares)).sum()) / np.log(EXPERTS)
    assert float(entropy_loss(scores)) == pytest.approx(want, rel=1e-9)
    assert float(entropy_loss(torch.ones(3, EXPERTS))) == pytest.approx(0, abs=1e-6)
    assert float(entropy_loss(torch.eye(EXPERTS))) == pytest.approx(0, abs=1e-6), "it is the mean that has to be even"
    assert float(entropy_loss(torch.eye(EXPERTS)[:1])) == pytest.approx(1)


@pytest.mark.parametrize("name", ["load balance", "entropy"])
def test_gradients_equal_finite_differences(name: str) -> None:
    scores, chosen = drawn(tokens=5)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return load_balance_loss(values, chosen) if name == "load balance" else entropy_loss(values)

    scores.requires_grad_(True)
    loss(scores).backward()
    want = np.zeros(scores.shape)
    for index in np.ndindex(*want.shape):
        step = torch.zeros_like(scores)
        step[index] = 1e-6
        with torch.no_grad():
            want[index] = float(loss(scores + step) - loss(scores - step)) / 2e-6
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(scores.grad.numpy(), want, rtol=1e-4, atol=1e-9)


def test_utilisation_is_the_normalised_entropy_of_the_loads() -> None:
    counts = torch.tensor([1, 7, 0, 4, 2, 2])
    shares = np.array([1, 7, 4, 2, 2]) / 16
    assert utilisation(counts) == pytest.approx(float(-(shares * np.log(shares)).sum() / np.log(6)))
    assert utilisation(torch.full((8,), 3)) == pytest.approx(1)
    assert utilisation(torch.tensor([0, 9, 0])) == 0
    with pytest.raises(ValueError, match="no tokens"):
        utilisation(torch.zeros(8, dtype=torch.int64))


def make_mixture() -> MoE:
    dtypes = {"dtype": torch.float32, "activation_dtype": torch.float32}
    experts = Experts(DIM, EXPERTS, 7, activation="silu", **dtypes)
    shared = GatedMLP(DIM, 7, bias=False, activation="silu", **dtypes)
    mixture = MoE(make_router(), experts, shared)
    for weight in (*experts.parameters(), *shared.parameters()):
        torch.nn.init.normal_(weight, std=0.3)
    return mixture


def test_one_expert_is_used_evenly() -> None:
    assert utilisation(torch.tensor([5])) == 1.0
    assert float(entropy_loss(torch.rand(4, 1))) == 0.0


def test_the_observer_sees_each_router_and_leaves_no_hook() -> None:
    model = torch.nn.ModuleDict({"first": make_mixture(), "second": make_mixture()})
    x = torch.randn(20, DIM, generator=torch.Generator().manual_seed(4))
    with observe_routing(model) as seen:
        model["first"](x)
        assert set(seen) == {"first.router"}
        model["second"](model["first"](x))
    assert set(seen) == {"first.router", "second.router"}
    routing = seen["first.router"]
    router = model["first"].router
    assert isinstance(routing, Routing) and routing.router is router
    want = 1 / (1 + np.exp(-(x.numpy() @ router.weight.detach().numpy().T)))
    np.testing.assert_allclose(routing.scores.detach().numpy(), want, rtol=1e-5)
    best = np.sort(np.argsort(-want, axis=1)[:, :ACTIVE], axis=1)
    np.testing.assert_array_equal(routing.chosen.numpy(), best)
    np.testing.assert_array_equal(routing.counts.numpy(), np.bincount(best.ravel(), minlength=EXPERTS))
    seen.clear()
    model["first"](x)
    assert not seen and not router._forward_hooks


def test_the_observer_lets_go_when_the_pass_fails() -> None:
    mixture = make_mixture()
    with pytest.raises(RuntimeError), observe_routing(mixture):
        mixture(torch.ones(2, DIM + 1))
    assert not mixture.router._forward_hooks


def test_observed_scores_carry_the_gradient_to_the_router() -> None:
    mixture = make_mixture()
    with observe_routing(mixture) as seen:
        mixture(torch.randn(20, DIM))
    load_balance_loss(seen["router"].scores, seen["router"].chosen).backward()
    assert mixture.router.weight.grad.abs().max() > 1e-4
    assert mixture.experts.gate_proj.weight.grad is None


@pytest.mark.parametrize("method", ["bias", "load balance", "entropy"])
def test_uneven_loads_become_even(method: str) -> None:
    """Inputs with a common direction send nearly everything to few experts at first; each method spreads it."""
    router = make_router(seed=3)
    generator = torch.Generator().manual_seed(5)
    common = 3 * torch.randn(DIM, generator=generator)

    def load(tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
        _, chosen, scores = router(common + torch.randn(tokens, DIM, generator=generator))
        return chosen, scores

    def evenness() -> float:
        with torch.no_grad():
            return utilisation(load(4000)[0].reshape(-1).bincount(minlength=EXPERTS))

    before, weight = evenness(), router.weight.clone()
    optimizer = torch.optim.Adam([router.weight], lr=0.02)
    for _ in range(200):
        chosen, scores = load()
        if method == "bias":
            update_bias(router, chosen.reshape(-1).bincount(minlength=EXPERTS), 0.02)
            continue
        optimizer.zero_grad()
        (load_balance_loss(scores, chosen) if method == "load balance" else entropy_loss(scores)).backward()
        optimizer.step()
    after = evenness()
    assert before < 0.8
    assert after > 0.95
    assert torch.equal(router.weight, weight) == (method == "bias")


def test_the_bias_moves_the_choice_and_not_the_weights() -> None:
    router = make_router()
    x = torch.randn(30, DIM, generator=torch.Generator().manual_seed(2))
    plain, _, scores = router(x)
    with torch.no_grad():
        router.bias[4] = 10.0
    weights, chosen, same = router(x)
    assert bool((chosen == 4).any(-1).all()) and torch.equal(same, scores)
    picked = scores.gather(1, chosen)
    torch.testing.assert_close(weights, picked / picked.sum(-1, keepdim=True))
    assert not torch.equal(plain, weights)
