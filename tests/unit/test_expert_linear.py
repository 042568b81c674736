"""The grouped product of experts against one product per expert in numpy: empty experts, odd widths, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek_r1.kernels import ops

COUNTS = [3, 0, 1, 0, 0, 7, 2, 0]


def case(inner: int, outer: int, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inner * 100 + outer)
    x = torch.randn(sum(counts), inner, generator=generator)
    weight = torch.randn(len(counts), outer, inner, generator=generator) / inner**0.5
    return x, weight, torch.tensor(counts).cumsum(0, dtype=torch.int32)


def by_loop(x: np.ndarray, weight: np.ndarray, counts: list[int]) -> np.ndarray:
    rows = np.split(x, np.cumsum(counts)[:-1])
    return np.concatenate([part @ matrix.T for part, matrix in zip(rows, weight, strict=True)])


@pytest.mark.parametrize("widths", [(48, 40), (10, 7), (7, 16), (16, 5), (1, 1)])
@pytest.mark.parametrize("counts", [COUNTS, [0, 0, 4], [1], [0, 0]])
def test_equals_one_product_per_expert(widths: tuple[int, int], counts: list[int]) -> None:
    x, weight, ends = case(*widths, counts)
    got = ops.expert_linear(x, weight, ends)
    want = by_loop(x.double().numpy(), weight.double().numpy(), counts)
    assert got.shape == want.shape
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


@pytest.mark.parametrize("widths", [(48, 40), (11, 9)])
def test_bf16_weights_round_the_input_only(widths: tuple[int, int]) -> None:
    x, weight, ends = case(*widths, COUNTS)
    got = ops.expert_linear(x, weight.bfloat16(), ends)
    assert got.dtype is torch.bfloat16
    want = by_loop(x.bfloat16().double().numpy(), weight.bfloat16().double().numpy(), COUNTS)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("widths", [(12, 8), (10, 7)])
def test_gradients(widths: tuple[int, int]) -> None:
    x, weight, ends = case(*widths, COUNTS)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    out = ops.expert_linear(x, weight, ends)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(upstream)
    rows = np.split(np.arange(sum(COUNTS)), np.cumsum(COUNTS)[:-1])
    for expert, mine in enumerate(rows):
        up = upstream[mine].numpy()
        np.testing.assert_allclose(weight.grad[expert].numpy(), up.T @ x.detach()[mine].numpy(), atol=1e-5)
        np.testing.assert_allclose(x.grad[mine].numpy(), up @ weight.detach()[expert].numpy(), atol=1e-5)


def test_the_same_call_gives_the_same_bits() -> None:
    x, weight, ends = case(48, 40, COUNTS)
    first = ops.expert_linear(x, weight, ends)
    assert all(torch.equal(ops.expert_linear(x, weight, ends), first) for _ in range(10))


def test_routing_chooses_the_best_in_ascending_order() -> None:
    scores = torch.rand(40, 8, generator=torch.Generator().manual_seed(2))
    bias = torch.tensor([0, 0, 0.4, 0, -0.3, 0, 0, 0.2])
    for added in (None, bias):
        want = np.sort(np.argsort(-(scores if added is None else scores + added).numpy(), axis=1)[:, :3], axis=1)
        np.testing.assert_array_equal(ops.route(scores, added, 3).numpy(), want)


@pytest.mark.parametrize("with_bias", [False, True])
def test_routing_stays_within_the_best_groups(with_bias: bool) -> None:
    """Groups are judged by their best expert, or with a bias by their best two; written out for each token."""
    scores = torch.rand(60, 12, generator=torch.Generator().manual_seed(3))
    bias = 0.3 * torch.randn(12, generator=torch.Generator().manual_seed(4)) if with_bias else None
    got = ops.route(scores, bias, 3, groups=4, active_groups=2).tolist()
    choice = (scores if bias is None else scores + bias).tolist()
    for chosen, row in zip(got, choice, strict=True):
        judged = [sum(sorted(row[g : g + 3])[-2 if with_bias else -1 :]) for g in range(0, 12, 3)]
        best = sorted(range(4), key=lambda group: -judged[group])[:2]
        allowed = [expert for expert in range(12) if expert // 3 in best]
        assert chosen == sorted(sorted(allowed, key=lambda expert: -row[expert])[:3])
