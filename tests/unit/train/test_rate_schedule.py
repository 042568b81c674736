"""The schedule against a table, a formula written otherwise, and the one of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.scheduler import CosineWarmup


def optimizer(*scales: float | None, lr: float = 1.0) -> torch.optim.SGD:
    groups: list[dict[str, Any]] = []
    for scale in scales or (None,):
        group: dict[str, Any] = {"params": [torch.nn.Parameter(torch.zeros(2))]}
        groups.append(group if scale is None else {**group, "lr_scale": scale})
    return torch.optim.SGD(groups, lr=lr)


def test_the_table_of_the_docstring() -> None:
    schedule = CosineWarmup(optimizer())
    table = {0: 3e-6, 1: 6.24e-5, 3: 1.812e-4, 5: 3e-4, 27.5: 1.515e-4, 50: 3e-6, 51: 3e-6, 1e9: 3e-6}
    assert schedule.get_last_lr() == [3e-6]
    for epoch, rate in table.items():
        schedule.step(epoch)
        assert schedule.get_last_lr() == pytest.approx([rate], rel=1e-12), epoch
        assert schedule.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0]
    for epoch, rate in {0: 3e-6, 5: 3e-4, 50: 3e-6, 1e6: 3e-6}.items():
        assert schedule.rate(epoch) == rate, "the ends are exact"


numbers = st.floats(0, 60)


@given(
    warmup=numbers, length=st.floats(0.01, 100), least=st.floats(0, 1), share=st.floats(0, 1), epoch=st.floats(0, 200)
)
@settings(max_examples=300, deadline=None)
def test_an_independent_formula_and_the_bounds(
    warmup: float, length: float, least: float, share: float, epoch: float
) -> None:
    most = 1e-3
    low = least * most
    total = warmup + length
    schedule = CosineWarmup(optimizer(), warmup, total, most, low)
    if epoch < warmup:
        want = low + (most - low) * epoch / warmup
    else:  # half a cosine by the half-angle formula
        want = low + (most - low) * math.cos(math.pi / 2 * min(1.0, (epoch - warmup) / (total - warmup))) ** 2
    assert schedule.rate(epoch) == pytest.approx(want, rel=1e-9, abs=1e-15)
    assert low <= schedule.rate(epoch) <= most
    assert schedule.rate(share * warmup) <= most and schedule.rate(total) == low


def rates_of_transformers(warmup: int, total: int, most: float, least: float, steps: int) -> Iterator[float]:
    sgd = optimizer(lr=most)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(sgd, warmup, total, min_lr=least)
    for _ in range(steps):
        yield theirs.get_last_lr()[0]
        sgd.step()
        theirs.step()


def test_transformers_agrees_from_the_warm_up_to_the_end() -> None:
    """It begins at 0, not at the least rate, and goes up again past the end."""
    theirs = list(rates_of_transformers(5, 50, 3e-4, 3e-6, 70))
    ours = [CosineWarmup(optimizer()).rate(epoch) for epoch in range(70)]
    assert ours[5:51] == pytest.approx(theirs[5:51], rel=1e-12)
    assert theirs[0] == 0.0 and ours[0] == 3e-6
    assert theirs[69] > 1e-4 and set(ours[50:]) == {3e-6}
    # From a rate of 0 on, the warm-up is the same too.
    theirs = list(rates_of_transformers(7, 30, 1e-3, 0.0, 31))
    assert [CosineWarmup(optimizer(), 7, 30, 1e-3, 0.0).rate(e) for e in range(31)] == pytest.approx(theirs, abs=1e-18)


def test_steps_groups_and_resuming() -> None:
    sgd = optimizer(None, 0.1, 0.0)
    schedule = CosineWarmup(sgd, 2, 10, 1e-2, 1e-4)
    for _ in range(3):
        schedule.step()
    rate = schedule.rate(3.0)
    assert schedule.get_last_lr() == [rate, rate * 0.1, 0.0] == [group["lr"] for group in sgd.param_groups]
    schedule.step(3.25)
    state = schedule.state_dict()
    other = CosineWarmup(optimizer(None, 0.1, 0.0), 2, 10, 1e-2, 1e-4)
    other.load_state_dict(state)
    assert other.get_last_lr() == schedule.get_last_lr() != [rate, rate * 0.1, 0.0]
    schedule.step()
    other.step()
    assert other.get_last_lr() == schedule.get_last_lr() and other.epoch == 4.25
    assert CosineWarmup(optimizer(), 0, 10).get_last_lr() == [3e-4], "no warm-up"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("warmup_epochs", value) for value in (-1, math.nan, "5", True, None)),
        *(("total_epochs", value) for value in (5, 4, math.inf, 10**400)),
        *(("max_lr", value) for value in (0, -1e-4, math.nan)),
        *(("min_lr", value) for value in (-1e-6, 1.0, math.nan)),
    ],
)
def test_bad_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a finite number"):
        CosineWarmup(optimizer(), **{name: value})


def test_bad_epochs_states_and_scales() -> None:
    schedule = CosineWarmup(optimizer())
    for epoch in (-0.5, math.nan, math.inf):
        with pytest.raises(ConfigError, match="epoch"):
            schedule.step(epoch)
    for state in ({}, {"epoch": None}, {"epoch": "3"}, {"epoch": -1.0}):
        with pytest.raises(ConfigError, match="epoch"):
            schedule.load_state_dict(state)
    assert schedule.epoch == 0.0 and schedule.get_last_lr() == [3e-6]
    for scale in (-1.0, math.inf):
        sgd = optimizer(None, scale)
        with pytest.raises(ConfigError, match="lr_scale"):
            CosineWarmup(sgd)
        assert [group["lr"] for group in sgd.param_groups] == [1.0, 1.0], "nothing is half done"
