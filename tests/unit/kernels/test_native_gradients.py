"""The native kernels of gradients against autograd in float64, on every path; gradients whose bits stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek_r1.kernels import backward, gradients, native, ops, reference
from deepseek_r1.kernels.backward import Families
from support.native_paths import PATHS, bits, native_path


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend(q: Tensor, k: Tensor, v: Tensor, families: Families, scale: float, window: int | None) -> Tensor:
    """Attention of every sequence by itself, those that it goes on from written out before it."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(len(q), q.shape[1], v.shape[2], dtype=q.dtype)
    for number in range(len(families.lengths)):
        rows, before = families.rows(number), families.before(number)
        keys, values = (x[rows].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        position, key = torch.arange(before, len(rows))[:, None], torch.arange(len(rows))[None]
        seen = (key <= position) & (key > position - (window or len(rows) + 1))
        scores = q[rows[before:]].transpose(0, 1) @ keys.transpose(1, 2) * scale
        found = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        out = out.index_copy(0, rows[before:], found.transpose(0, 1))
    return out


CASES = [
    # lengths, prefixes, heads, key heads, key columns, value columns, window
    ([5, 3, 70], [None, None, None], 4, 2, 8, 8, None),
    ([100, 33, 1, 64], [None, 0, 0, 0], 6, 2, 24, 20, None),
    ([40, 129, 100, 7], [None, None, 1, 0], 3, 3, 64, 64, 17),
    ([150], [None], 4, 1, 80, 48, None),
    ([0, 9, 0, 2], [None, None, 1, 1], 2, 1, 16, 16, 3),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", PATHS)
def test_attentions_gradients(path: str, case: tuple) -> None:
    lengths, prefixes, heads, kv_heads, key_dim, value_dim, window = case
    families, rows = Families(lengths, prefixes), sum(lengths)
    given = [
        drawn(rows, count, dim, seed=seed)
        for seed, (count, dim) in enumerate([(heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim)])
    ]
    grad = drawn(rows, heads, value_dim, seed=3)
    wide = [x.double().requires_grad_() for x in given]
    want = torch.autograd.grad(attend(*wide, families, 0.3, window), wide, grad.double())
    with native_path(path, threads=2):
        found = backward.attention_gradient(grad, *given, families, 0.3, window)
        again = backward.attention_gradient(grad, *given, families, 0.3, window)
    for ours, theirs, same in zip(found, want, again, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(bits(ours), bits(same))
    with native_path(path, threads=1):
        alone = backward.attention_gradient(grad, *given, families, 0.3, window)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found, alone, strict=True))


def test_attentions_gradients_of_rows_apart() -> None:
    """q, k and v are columns of one product's result, and the gradient may be a broadcast one."""
    families = Families([20], [None])
    q, k, v = drawn(20, 8 * 24).view(20, 24, 8).split([16, 4, 4], 1)
    found = backward.attention_gradient(torch.ones(1, 1, 1).expand(20, 16, 8), q, k, v, families, 0.5, None)
    want = backward.attention_gradient(
        torch.ones(20, 16, 8), q.contiguous(), k.contiguous(), v.contiguous(), families, 0.5, None
    )
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found, want, strict=True))


def test_a_family_has_one_root() -> None:
    with pytest.raises(ValueError, match="doesn't stand alone"):
        Families([3, 3, 3], [None, 0, 1])


@pytest.mark.parametrize("damage", [{"rows": 5}, {"ends": [0, 2]}, {"ends": [0, 2, 1, 3]}])
def test_hostile_families_are_refused(damage: dict) -> None:
    families = Families([2, 2, 2], [None, 0, None])
    if "rows" in damage:
        families.sequences[1, 1] = damage["rows"]
    else:
        families.ends = torch.tensor(damage["ends"])
    x = drawn(6, 2, 8)
    with pytest.raises(ValueError, match="attention_gradient"):
        backward.attention_gradient(x, x, x, x, families, 1.0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 16, 50, 300])
@pytest.mark.parametrize("path", PATHS)
def test_gates_and_norms(path: str, dim: int, dtype: torch.dtype) -> None:
    both = (drawn(7, 2 * dim, seed=1) * 4).to(dtype)
    gate, up = both[:, :dim], both[:, dim:]
    weight, grad = drawn(dim, seed=2), drawn(7, dim, seed=3).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    with native_path(path):
        gates = backward.gated(grad, gate, up)
        norm = backward.rms_norm(grad, gate, weight, 1e-5)
        by_head = backward.rms_norm(grad.view(7, 1, dim), gate.view(7, 1, dim), weight, 1e-5)
    assert torch.equal(by_head.flatten(1), norm)
    wide = [x.double().requires_grad_() for x in (gate, up)]
    for ours, want in zip(
        gates, torch.autograd.grad(torch.nn.functional.silu(wide[0]) * wide[1], wide, grad.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), want, **tolerance)
    (want,) = torch.autograd.grad(reference.rms_norm(wide[0], weight.double(), 1e-5), wide[0], grad.double())
    torch.testing.assert_close(norm.double(), want, **tolerance)
    assert norm.dtype is gates[0].dtype is dtype


def test_gates_at_the_ends_of_floats() -> None:
    """silu is x above, 0 below, and its gradient 1 and 0."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30]])
    of_gate, of_up = backward.gated(torch.ones(1, 5), gate, torch.ones(1, 5))
    torch.testing.assert_close(of_gate, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))
    torch.testing.assert_close(of_up, torch.tensor([[0.0, 0.0, 0.0, 200.0, 1e30]]))


def test_columns_give_their_gradients_back_in_one() -> None:
    x = drawn(6, 10).requires_grad_()
    weights = drawn(6, 10, seed=1)
    parts = ops.parts(x, [4, 6])
    (found,) = torch.autograd.grad((parts[0] * weights[:, :4]).sum() + (parts[1] * weights[:, 4:]).sum(), x)
    assert torch.equal(found, weights)
    (found,) = torch.autograd.grad(ops.parts(x, [4, 6])[1].sum(), x)
    assert torch.equal(found, torch.cat((torch.zeros(6, 4), torch.ones(6, 6)), 1))
    whole = drawn(6, 10, seed=2)
    assert gradients._side_by_side((whole[:, :4], whole[:, 4:]), x.shape)
    for grads in ((whole[:, 4:8], whole[:, :6]), (whole[:, :4].clone(), whole[:, 4:]), (whole[:, :4], None)):
        assert not gradients._side_by_side(grads, x.shape)


def test_rows_that_are_taken_twice_have_one_gradient() -> None:
    """torch's own indexing adds up such rows in any order, with other bits each time."""
    x, index = (
        drawn(300, 576).requires_grad_(),
        torch.randint(0, 300, (5000,), generator=torch.Generator().manual_seed(1)),
    )
    grad = drawn(5000, 576, seed=2)
    seen = [torch.autograd.grad(ops.take_rows(x, index), x, grad)[0] for _ in range(6)]
    assert all(torch.equal(bits(one), bits(seen[0])) for one in seen)
    want = torch.zeros(300, 576, dtype=torch.float64).index_add_(0, index, grad.double())
    torch.testing.assert_close(seen[0].double(), want, rtol=1e-4, atol=1e-4)


def test_addresses_are_checked() -> None:
    x = drawn(4, 2, 8)
    with pytest.raises(TypeError):
        backward.gated(x.double(), x, x)
    with pytest.raises(ValueError, match="overlap"):
        native.library.gated_gradient(*[x.data_ptr()] * 3, False, 4, 16, 16, 16, 16, *[x.data_ptr()] * 2, 8)
