"""The rate follows the loss by the rule, stays in its bounds, and goes on exactly after a resume."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.train.adaptive import AdaptiveOptimizer


def attached(**options: Any) -> tuple[AdaptiveOptimizer, torch.optim.SGD]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": scale} for scale in (1.0, 0.5)]
    sgd = torch.optim.SGD(groups, lr=1.0)
    adaptive = AdaptiveOptimizer(**options)
    adaptive.attach(sgd)
    return adaptive, sgd


def test_a_trace_computed_by_hand() -> None:
    adaptive, sgd = attached(base_lr=1e-4, fast=0.5, slow=0.75, rise=2.0, decay=0.5, max_factor=3.0, min_factor=0.3)
    assert [group["lr"] for group in sgd.param_groups] == [1e-4, 0.5e-4]
    #         loss       fast    slow    factor
    table = [
        (8.0, 1.0),  #   8       8       equal: stays
        (4.0, 2.0),  #   6       7       falls
        (4.0, 3.0),  #   5       6.25    falls, at most 3
        (4.0, 3.0),  #   4.5     5.6875
        (16.0, 1.5),  #  10.25   8.27    rises
        (16.0, 0.75),
        (math.nan, 0.375),
        (math.inf, 0.3),  #              at least 0.3
        (-math.inf, 0.3),
        (0.0, 0.6),  #   6.5625  7.65
    ]
    for loss, factor in table:
        assert adaptive.step(loss) == adaptive.lr == pytest.approx(factor * 1e-4, rel=1e-12), loss
        assert [group["lr"] for group in sgd.param_groups] == [adaptive.lr, adaptive.lr * 0.5]
    assert adaptive.bad_losses == 3
    # fast: (10.25 + 16) / 2 = 13.125, then 0; slow: 8.265625 * 3/4 + 4 = 10.19921875, then * 3/4
    assert adaptive.state_dict()["fast_mean"] == 6.5625 and adaptive.state_dict()["slow_mean"] == 7.6494140625


def test_a_loss_that_stays_moves_nothing() -> None:
    adaptive, _ = attached()
    for loss in [0.1] * 1000:
        assert adaptive.step(loss) == 1e-4


def test_falling_rising_and_falling_again() -> None:
    adaptive, _ = attached()
    for step in range(400):
        adaptive.step(5.0 - 0.01 * step)
    assert adaptive.lr == 1e-4 * 10.0, "up to the bound"
    for step in range(400):
        adaptive.step(1.0 + 0.01 * step)
    assert adaptive.lr == 1e-4 * 0.01, "down to the bound"
    before = adaptive.lr
    for step in range(150):
        adaptive.step(5.0 - 0.02 * step)
    assert adaptive.lr > before


def test_it_trains() -> None:
    """A quadratic bowl is descended, from a rate that is too low and from one at which it diverges."""
    for base in (1e-3, 2.5):
        weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        sgd = torch.optim.SGD([weight], lr=1.0)
        adaptive = AdaptiveOptimizer(base)
        adaptive.attach(sgd)
        for _ in range(600):
            sgd.zero_grad()
            loss = weight.square().sum() / 2
            loss.backward()
            sgd.step()
            adaptive.step(loss.item())
        assert float(weight.detach().abs().max()) < 0.1, base


wild = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60)


@given(losses=wild, cut=st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_bounded_never_poisoned_and_resumed_exactly(losses: list[float], cut: int) -> None:
    whole, _ = attached()
    trace = [whole.step(loss) for loss in losses]
    assert all(1e-4 * 0.01 <= rate <= 1e-4 * 10.0 for rate in trace)
    assert whole.bad_losses == sum(not math.isfinite(loss) for loss in losses)
    first, _ = attached()
    for loss in losses[:cut]:
        first.step(loss)
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second, sgd = attached()
    second.load_state_dict(state)
    assert sgd.param_groups[0]["lr"] == first.lr
    assert [second.step(loss) for loss in losses[cut:]] == trace[cut:]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("base_lr", value) for value in (0.0, -1.0, math.nan, True)),
        *(("rise", value) for value in (0.99, math.inf)),
        *(("decay", value) for value in (0.0, 1.01)),
        *(("min_factor", value) for value in (0.0, 1.5)),
        *(("max_factor", value) for value in (0.5, math.inf)),
        *(("slow", value) for value in (0.4, 1.0)),
        *(("fast", value) for value in (0.4, 0.99, 1.0)),
    ],
)
def test_bad_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        AdaptiveOptimizer(**{"base_lr": 1e-4, name: value})


def test_without_an_optimizer_and_with_bad_states() -> None:
    with pytest.raises(ConfigError, match="no optimizer is attached"):
        AdaptiveOptimizer().step(1.0)
    adaptive, sgd = attached()
    adaptive.step(1.0)
    good = adaptive.state_dict()
    bad: dict[str, Any] = {"factor": 0.0, "fast_mean": None, "slow_mean": math.nan, "bad_losses": -1}
    for name, value in bad.items():
        with pytest.raises(ConfigError):
            adaptive.load_state_dict({**good, name: value})
        with pytest.raises(ConfigError):
            adaptive.load_state_dict({key: kept for key, kept in good.items() if key != name})
        assert adaptive.state_dict() == good
    adaptive.load_state_dict({**good, "factor": 1e9})
    assert adaptive.lr == sgd.param_groups[0]["lr"] == 1e-4 * 10.0, "other bounds are kept"
