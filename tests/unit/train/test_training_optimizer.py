"""AdamW against its formula in float64, the norm against exact sums, and state that goes to names and back."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from deepseek_r1.config.optimizer import OptimizerConfig
from deepseek_r1.core.errors import ConfigError, DeepSeekError
from deepseek_r1.train.optimizer import build_optimizer, clip_gradients, load_named_state, named_state

CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1, beta1=0.9, beta2=0.95)


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 4), "norm.weight": (4,), "experts": (2, 3, 5), "scale": ()}
    made = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    return made | {"frozen": nn.Parameter(torch.ones(3, 3), requires_grad=False)}


def give_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in named.values():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_steps_are_those_of_the_formula() -> None:
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2), none for norms and scalars."""
    named = weights()
    optimizer = build_optimizer(named.items(), CONFIG)
    expected = {name: parameter.detach().double() for name, parameter in named.items()}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    square = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 6):
        give_gradients(named, step)
        optimizer.step()
        for name, parameter in named.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.double()
            decay = 0.1 if name in ("a.weight", "experts") else 0.0
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            moved = mean[name] / (1 - 0.9**step) / ((square[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - 1e-2 * decay) - 1e-2 * moved
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(named["frozen"], torch.ones(3, 3))


def test_groups_and_settings() -> None:
    optimizer = build_optimizer(weights().items(), CONFIG)
    matrices, vectors = optimizer.param_groups
    assert [len(group["params"]) for group in (matrices, vectors)] == [2, 2]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-2, (0.9, 0.95), 1e-8)
        assert group["foreach"] is False and group["fused"] is False
    only = build_optimizer([("a", nn.Parameter(torch.zeros(2)))], CONFIG)
    assert [group["weight_decay"] for group in only.param_groups] == [0.0], "no empty group"


def test_what_can_not_be_trained() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.weight is bfloat16"):
        build_optimizer([("layers.0.weight", nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))], CONFIG)
    with pytest.raises(ConfigError, match="no parameter requires gradients"):
        build_optimizer([("frozen", weights()["frozen"])], CONFIG)


def of_gradients(*gradients: Tensor) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def norm_of(*gradients: Tensor) -> float:
    """The norm by exact rational sums, rounded at the end."""
    total = sum(Fraction(value) ** 2 for gradient in gradients for value in gradient.double().flatten().tolist())
    return math.sqrt(total)


SIZES = [(3,), (4095,), (4096,), (4097,), (3, 5000), (0,), (), (257, 4096 // 32)]


def test_the_norm_is_exact_and_gradients_shrink_to_it() -> None:
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(size, generator=generator) * 10.0**number for number, size in enumerate(SIZES)]
    parameters = of_gradients(*gradients)
    norm = clip_gradients([*parameters, nn.Parameter(torch.zeros(2))], 1.5)  # one has no gradient
    assert norm == pytest.approx(norm_of(*gradients), rel=1e-14)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient * (1.5 / norm), rtol=1e-6, atol=0.0)
    assert clip_gradients(parameters, 1e9) == pytest.approx(1.5, rel=1e-6)
    reference = of_gradients(*gradients)
    assert float(nn.utils.clip_grad_norm_(reference, 1.5, foreach=False)) == pytest.approx(norm, rel=1e-5)


def test_small_gradients_stay_as_they_are() -> None:
    gradient = torch.tensor([[0.3, -0.4]])
    (parameter,) = of_gradients(gradient)
    assert clip_gradients([parameter], 0.5 + 1e-6) == pytest.approx(0.5, rel=1e-7)
    assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
    assert clip_gradients([], 1.0) == 0.0


def test_the_norm_hangs_on_no_order_and_no_thread_count() -> None:
    generator = torch.Generator().manual_seed(4)
    gradients = [torch.randn(size, generator=generator) for size in ((700, 1024), (1, 300_000), (64, 33), (1_100_000,))]
    parameters = of_gradients(*gradients)
    threads = torch.get_num_threads()
    norms = set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms |= {clip_gradients(parameters, 1e9), clip_gradients(parameters[::-1], 1e9)}
    finally:
        torch.set_num_threads(threads)
    assert len(norms) == 1
    transposed = nn.Parameter(torch.zeros(1024, 700))
    transposed.grad = gradients[0].t()
    assert clip_gradients([transposed], 1e9) == pytest.approx(float(gradients[0].double().norm()), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_left_alone(bad: float) -> None:
    gradients = torch.full((5000,), 7.0), torch.tensor([1.0, bad])
    parameters = of_gradients(*gradients)
    norm = clip_gradients(parameters, 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters[:1], gradients[:1], strict=True) if p.grad is not None)
    assert parameters[1].grad is not None and float(parameters[1].grad[0]) == 1.0


def test_bad_bounds_are_refused() -> None:
    for bound in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="max_norm"):
            clip_gradients([], bound)


def test_resuming_from_named_state_is_exact() -> None:
    named = weights()
    optimizer = build_optimizer(named.items(), CONFIG)
    for step in range(3):
        give_gradients(named, step)
        optimizer.step()
    state = {name: tensor.clone() for name, tensor in named_state(optimizer, named).items()}
    parts = ("exp_avg", "exp_avg_sq", "step")
    trained = [name for name in named if name != "frozen"]
    assert set(state) == {f"optimizer.{name}.{part}" for name in trained for part in parts}
    assert float(state["optimizer.a.weight.step"]) == 3.0 and state["optimizer.experts.exp_avg"].shape == (2, 3, 5)

    # Built in another order: names decide, not places.
    copies = {name: nn.Parameter(p.detach().clone(), p.requires_grad) for name, p in reversed(named.items())}
    resumed = build_optimizer(copies.items(), CONFIG)
    load_named_state(resumed, copies, {**state, "weight.a": torch.zeros(1)})
    for tensor in state.values():
        tensor.zero_()  # what was loaded are copies
    for step in range(3, 6):
        for which, steps in ((named, optimizer), (copies, resumed)):
            for name in trained:
                generator = torch.Generator().manual_seed(len(name) * 100 + step)
                which[name].grad = torch.randn(which[name].shape, generator=generator)
            steps.step()
    for name, parameter in named.items():
        assert torch.equal(parameter, copies[name]), name
    again, there = named_state(optimizer, named), named_state(resumed, copies)
    assert set(again) == set(there) and all(torch.equal(again[name], there[name]) for name in again)


def test_parameters_without_a_step_have_no_state() -> None:
    named = weights()
    optimizer = build_optimizer(named.items(), CONFIG)
    assert named_state(optimizer, named) == {}
    named["scale"].grad = torch.tensor(1.0)
    optimizer.step()
    state = named_state(optimizer, named)
    assert len(state) == 3
    other = build_optimizer((fresh := weights(1)).items(), CONFIG)
    give_gradients(fresh, 0)
    other.step()
    load_named_state(other, fresh, state)
    assert named_state(other, fresh).keys() == state.keys(), "state that was not saved is gone"


def test_state_that_does_not_fit_changes_nothing() -> None:
    named = weights()
    optimizer = build_optimizer(named.items(), CONFIG)
    give_gradients(named, 0)
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in named_state(optimizer, named).items()}
    key = "optimizer.a.weight.exp_avg"
    damaged = {
        "is missing": {name: tensor for name, tensor in state.items() if name != key},
        r"shape \(4, 6\), not": {**state, key: torch.zeros(4, 6)},
        "torch.float64 of": {**state, key: torch.zeros(6, 4, dtype=torch.float64)},
        "optimizer.b.step belongs to nothing": {**state, "optimizer.b.step": torch.tensor(1.0)},
        r"shape \(1,\), not torch.float32 of shape \(\)": {**state, "optimizer.scale.step": torch.ones(1)},
    }
    for problem, tensors in damaged.items():
        with pytest.raises(DeepSeekError, match=problem):
            load_named_state(optimizer, named, tensors)
        now = named_state(optimizer, named)
        assert set(now) == set(state) and all(torch.equal(now[name], state[name]) for name in state)
    del named["scale"]
    with pytest.raises(DeepSeekError, match=r"shape \(\) has no name"):
        named_state(optimizer, named)
