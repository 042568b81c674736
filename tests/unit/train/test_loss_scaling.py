"""Loss scales against a table computed by hand, and against the operator that torch's own scaler uses."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.train import scaling
from deepseek_r1.train.scaling import GROW_EVERY, LossScaler


def test_dynamic_by_hand() -> None:
    scaler = LossScaler("dynamic")
    assert scaler.factor == 65536.0
    # (good steps, then one that is not: or None), the scale after them
    table = [(1999, None, 2**16), (1, None, 2**17), (1999, False, 2**16), (1999, None, 2**16), (1, None, 2**17),
             (0, False, 2**16), (0, False, 2**15), (4000, None, 2**17)]  # fmt: skip
    for good, bad, scale in table:
        for _ in range(good):
            scaler.update(True)
        if bad is not None:
            scaler.update(bad)
        assert scaler.factor == scale
    for _ in range(40):
        scaler.update(False)
    assert scaler.factor == 1.0, "never below 1"
    for _ in range(30 * GROW_EVERY):
        scaler.update(True)
    assert scaler.factor == 2.0**24, "never above 2^24"
    scaler.update(False)
    assert scaler.factor == 2.0**23


def test_dynamic_as_torch_moves_it() -> None:
    """Within the bounds, which torch's scaler lacks, every step's scale is that of its operator."""
    rng = random.Random(5)
    scaler = LossScaler("dynamic")
    scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    for step in range(30_000):
        finite = rng.random() > 2e-4
        scaler.update(finite)
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(not finite)), 2.0, 0.5, GROW_EVERY)
        assert scaler.factor == float(scale), step
    assert scaler.factor != 65536.0


def test_gradients_are_those_without_scaling() -> None:
    for given, factor in ((None, 1.0), (128, 128.0), (3.0, 3.0), ("dynamic", 65536.0)):
        generator = torch.Generator().manual_seed(1)
        weight = nn.Parameter(torch.randn(5, 3, generator=generator))
        spare = nn.Parameter(torch.zeros(1))
        inputs = torch.randn(7, 3, generator=generator)
        loss = (inputs @ weight.t()).square().mean()
        (want,) = torch.autograd.grad(loss, weight, retain_graph=True)
        scaler = LossScaler(given)  # type: ignore[arg-type]
        assert float(scaler.scale(loss).detach()) == pytest.approx(factor * float(loss.detach()), rel=1e-6)
        scaler.scale(loss).backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, want * factor)
        scaler.unscale([weight, spare])
        if factor != 3.0:
            assert torch.equal(weight.grad, want), "powers of two change no bit"
        torch.testing.assert_close(weight.grad, want)
        assert spare.grad is None


def test_a_gradient_that_fp16_would_lose_is_kept() -> None:
    for scaling_of, kept in ((None, False), (1024, True)):
        weight = nn.Parameter(torch.ones(4))
        scaler = LossScaler(scaling_of)
        scaler.scale((weight.half() * 1e-4).float().sum() * 1e-4).backward()
        scaler.unscale([weight])
        assert weight.grad is not None
        assert bool((weight.grad > 0).all()) == kept
        if kept:
            torch.testing.assert_close(weight.grad, torch.full((4,), 1e-8), rtol=0.05, atol=0.0)


def test_a_scale_that_is_not_dynamic_stays() -> None:
    for given in (None, 128.0):
        scaler = LossScaler(given)
        for finite in (False, True, False):
            scaler.update(finite)
        scaler.load_state_dict({"factor": 4.0, "good_steps": 1})
        assert scaler.factor == (given or 1.0) and not scaler.dynamic


def test_resuming_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROW_EVERY", 5)
    rng = random.Random(2)
    events = [rng.random() > 0.15 for _ in range(200)]
    whole = LossScaler("dynamic")
    trace = []
    for finite in events:
        whole.update(finite)
        trace.append(whole.factor)
    for cut in range(0, 200, 7):
        first, second = LossScaler("dynamic"), LossScaler("dynamic")
        for finite in events[:cut]:
            first.update(finite)
        second.load_state_dict(first.state_dict())
        rest = []
        for finite in events[cut:]:
            second.update(finite)
            rest.append(second.factor)
        assert rest == trace[cut:]


@pytest.mark.parametrize("given", [0, 0.5, -128, 2**25, float("nan"), "static", True])
def test_what_is_no_scale(given: Any) -> None:
    with pytest.raises(ConfigError, match="loss_scaling"):
        LossScaler(given)


def test_what_is_no_state() -> None:
    scaler = LossScaler("dynamic")
    states: list[dict[str, Any]] = [
        {}, {"factor": 2.0}, {"factor": 0.5, "good_steps": 0}, {"factor": 2.0**25, "good_steps": 0},
        {"factor": 2.0, "good_steps": -1}, {"factor": 2.0, "good_steps": GROW_EVERY}, {"factor": "2", "good_steps": 0},
        {"factor": 2.0, "good_steps": 1.0},
    ]  # fmt: skip
    for state in states:
        with pytest.raises(ConfigError):
            scaler.load_state_dict(state)
        assert scaler.state_dict() == {"factor": 65536.0, "good_steps": 0}
