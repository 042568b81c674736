"""Gradients of packed products at any number of rows, and what oneDNN gets to see of it."""

from __future__ import annotations

import pytest
import torch

from deepseek_r1.kernels import gradients, ops
from deepseek_r1.kernels.quantised import quantise


def weight_of(kind: str) -> tuple[ops.PackedWeight, torch.Tensor]:
    """A packed weight (80, 72), and the values that it stands for."""
    plain = torch.randn(80, 72, generator=torch.Generator().manual_seed(1))
    if kind in ("fp32", "bf16"):
        plain = plain.to({"fp32": torch.float32, "bf16": torch.bfloat16}[kind])
        return ops.PackedWeight([plain]), plain.float()
    coded = quantise(plain, int(kind[3:]), 32)
    return ops.PackedWeight([coded]), coded.dequantise()


@pytest.mark.parametrize("rows", [1, 3, 255, 256, 300])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4"])
def test_a_packed_products_gradients_are_those_of_its_values(kind: str, rows: int) -> None:
    packed, plain = weight_of(kind)
    x = torch.randn(rows, 72, generator=torch.Generator().manual_seed(rows)).requires_grad_()
    master, bias = plain.clone().requires_grad_(), torch.zeros(80).requires_grad_()
    wanted = (
        torch.randn(rows, 80, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    )  # as bf16 outputs get it
    (ops.trained_linear(x, master, packed, bias) * wanted).sum().backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kind == "fp32" else {"rtol": 2e-2, "atol": 0.15}
    torch.testing.assert_close(x.grad, wanted @ plain, **tolerance)
    torch.testing.assert_close(master.grad, wanted.t() @ x.detach(), **tolerance)
    torch.testing.assert_close(bias.grad, wanted.sum(0))


def test_operands_have_few_numbers_of_rows() -> None:
    """oneDNN kept code and memory for each: a run whose batches had all numbers of rows grew by gigabytes."""
    seen = set()
    for rows in range(1, 1000, 7):
        x = torch.randn(rows, 3)
        padded = gradients._operand(x, torch.bfloat16)
        assert torch.equal(padded[:rows], x.bfloat16()) and not padded[rows:].any()
        seen.add(len(padded))
    assert seen == {256, 512, 768, 1024}


def test_chosen_logprobs_and_their_gradient() -> None:
    logits = (torch.randn(5, 40, generator=torch.Generator().manual_seed(3)) * 4).requires_grad_()
    tokens = torch.tensor([0, 39, 7, 7, 20])
    ours = ops.token_logprobs(logits, tokens)
    want = torch.log_softmax(logits.double(), -1).gather(1, tokens[:, None])[:, 0]
    assert ours.dtype is torch.float64
    torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-6)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (got,) = torch.autograd.grad((ours * weights).sum(), logits, retain_graph=True)
    (target,) = torch.autograd.grad((want * weights).sum(), logits)
    torch.testing.assert_close(got, target, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_closed_forms_equal_recomputed_ones(scale: float) -> None:
    """Norms, rotations, gates and sums against autograd through the references."""
    from deepseek_r1.kernels import reference

    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(6, 2, 32, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(32, generator=generator).requires_grad_()
    cos, sin = ops.rotary(torch.arange(6), torch.rand(16, generator=generator), 1.0, torch.float32)
    pairs = [
        (ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)),
        (ops.rope(x, cos, sin), reference.rope(x, cos, sin)),
        (ops.gated("silu", x, y), reference.gated("silu", x, y)),
        (ops.gated("gelu_tanh", x, y), reference.gated("gelu_tanh", x, y)),
        (ops.add(x, y, scale), reference.add(x, y, scale)),
    ]
    for ours, want in pairs:
        grad = torch.randn(ours.shape, generator=generator)
        found = torch.autograd.grad(ours, (x, y, weight), grad, allow_unused=True)
        target = torch.autograd.grad(want, (x, y, weight), grad, allow_unused=True)
        for a, b in zip(found, target, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
