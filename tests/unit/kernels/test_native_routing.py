"""Routing on its native kernels: exact choices, orders and sums, ties to the lower id, gradients, hostile ids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_r1.kernels import native, ops, reference
from deepseek_r1.kernels.recording import Arena, Recording
from deepseek_r1.layers import Experts, MoE, Router
from deepseek_r1.models.surgery import pack_linears
from support.native_paths import bits


def chosen_by_hand(choice: list[float], active: int, groups: int, active_groups: int, two: bool) -> list[int]:
    """By sorts in Python, which are stable: among equals the lower id comes first."""
    width = len(choice) // groups
    members = [range(g * width, (g + 1) * width) for g in range(groups)]
    judged = [math.fsum(sorted(choice[e] for e in group)[-2 if two else -1 :]) for group in members]
    best = sorted(range(groups), key=lambda g: -judged[g])[:active_groups]
    allowed = [e for g in sorted(best) for e in members[g]] if groups > 1 else list(range(len(choice)))
    return sorted(sorted(allowed, key=lambda e: -choice[e])[:active])


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 5),
    width=st.integers(2, 9),
    groups=st.integers(1, 5),
    active_groups=st.integers(1, 5),
    with_bias=st.booleans(),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 999),
)
def test_choices_are_those_made_by_hand(
    tokens: int, width: int, groups: int, active_groups: int, with_bias: bool, levels: int, seed: int
) -> None:
    """Scores of few levels are full of ties; eighths add up without rounding."""
    active_groups = min(groups, active_groups)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (tokens, groups * width), generator=generator) / 8
    bias = torch.randint(-4, 5, (groups * width,), generator=generator) / 8 if with_bias else None
    active = 1 + seed % (width * (active_groups if groups > 1 else 1))
    sizes = {"groups": groups, "active_groups": active_groups}
    got = ops.route(scores, bias, active, **sizes)
    choice = (scores if bias is None else scores + bias).tolist()
    assert got.tolist() == [chosen_by_hand(row, active, groups, active_groups, with_bias) for row in choice]
    assert torch.equal(got, reference.route(scores, bias, active, groups, active_groups))


def test_what_is_not_a_number_is_chosen_last() -> None:
    scores = torch.tensor([[0.1, math.nan, 0.3, math.nan, 0.2, 0.0]])
    assert ops.route(scores, None, 3).tolist() == [[0, 2, 4]]
    assert ops.route(torch.full((2, 6), math.nan), None, 2, groups=3, active_groups=2).tolist() == [[0, 1]] * 2
    assert ops.route(torch.full((1, 6), -math.inf), None, 6).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_are_the_exact_ones_rounded_once(kind: str) -> None:
    logits = torch.randn(50, 37, generator=torch.Generator().manual_seed(0)) * 20
    wide = logits.double()
    want = wide.sigmoid() if kind == "sigmoid" else wide.softmax(-1)
    got = ops.scores(logits, kind)
    assert ((got - want).abs() <= want * 2**-23 + 1e-44).all()
    for row in (0, 17, 49):
        assert torch.equal(ops.scores(logits[row : row + 1], kind)[0], got[row])
    extreme = ops.scores(torch.tensor([[200.0, -200.0, 0.0], [-1e30, 3e38, 3e38]]), kind)
    assert extreme.isfinite().all()
    strided = torch.randn(4, 50)[:, 3:40]
    assert torch.equal(ops.scores(strided, kind), ops.scores(strided.contiguous(), kind))


@pytest.mark.parametrize("normalise", [True, False])
def test_weights_are_summed_in_the_order_of_the_ids(normalise: bool) -> None:
    scores = torch.rand(30, 16, generator=torch.Generator().manual_seed(1))
    chosen = ops.route(scores, None, 6)
    got = ops.route_weights(scores, chosen, normalise=normalise, scale=2.5)
    for row, ids, weights in zip(scores, chosen, got, strict=True):
        picked, total = row[ids], torch.zeros(())
        for each in picked:
            total = total + each
        assert torch.equal(weights, (picked / (total + 1e-20) if normalise else picked) * 2.5)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 40), experts=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_order_by_expert_is_a_stable_sort(tokens: int, experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    active = 1 + seed % experts
    chosen = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :active].sort(-1).values
    totals = torch.arange(experts)
    sources, places, ends = ops.by_expert(chosen, totals)
    pairs = sorted((int(expert), token) for token, row in enumerate(chosen) for expert in row)
    assert sources.tolist() == [token for _, token in pairs]
    assert ends.tolist() == [sum(expert <= e for expert, _ in pairs) for e in range(experts)]
    assert ends.dtype is torch.int32
    counts = [sum(expert == e for expert, _ in pairs) for e in range(experts)]
    assert totals.tolist() == [e + count for e, count in enumerate(counts)]
    for token, row in enumerate(places.tolist()):
        assert [pairs[place] for place in row] == [(int(expert), token) for expert in chosen[token]]
    again = torch.arange(experts)
    for got, want in zip((sources, places, ends), reference.by_expert(chosen, again), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(totals, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 15, 16, 50])
def test_sums_are_those_of_the_reference_bit_for_bit(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(24, dim + 3, generator=generator).to(dtype)[:, 1 : dim + 1]
    places = torch.randperm(24, generator=generator).view(8, 3)
    weights = torch.randn(8, 3, generator=generator)
    got = ops.combine(x, places, weights)
    assert got.dtype is torch.float32
    assert torch.equal(bits(got), bits(reference.combine(x, places, weights)))
    assert torch.equal(ops.combine(x, places[2:3], weights[2:3]), got[2:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_joined(dtype: torch.dtype) -> None:
    wide = torch.randn(5, 3, 20)
    parts = wide[:, :, :7], wide[:, :, 7:20].bfloat16()
    got = ops.join(*parts, dtype=dtype)
    assert torch.equal(got, torch.cat([part.to(dtype) for part in parts], dim=-1)) and got.dtype is dtype
    assert ops.join(torch.empty(0, 1, 4), torch.empty(0, 1, 2), dtype=dtype).shape == (0, 1, 6)


def numerical(call: object, x: Tensor, upstream: Tensor) -> Tensor:
    """Central differences of (call(x) * upstream).sum()."""
    found = torch.empty_like(x)
    for index in range(x.numel()):
        moved = []
        for step in (1e-2, -1e-2):
            other = x.detach().clone()
            other.view(-1)[index] += step
            moved.append((call(other) * upstream).sum())  # type: ignore[operator]
        found.view(-1)[index] = (moved[0] - moved[1]) / 2e-2
    return found


def test_gradients() -> None:
    chosen, places = torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0, 3], [1, 2]])
    weights = torch.rand(2, 2)
    calls = {
        "softmax": lambda x: ops.scores(x, "softmax"),
        "sigmoid": lambda x: ops.scores(x, "sigmoid"),
        "weights": lambda x: ops.route_weights(x.abs() + 1, chosen, normalise=True, scale=1.5),
        "rows": lambda x: ops.combine(x, places, weights),
        "joined": lambda x: ops.join(x[:, :2], x[:, 2:] * 3, dtype=torch.float32),
    }
    for name, call in calls.items():
        x = torch.randn(4 if name == "rows" else 2, 4, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
        out = call(x)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
        out.backward(upstream)
        assert (x.grad - numerical(call, x, upstream)).abs().max() < 5e-3, name
    rows, weights = torch.randn(4, 6), weights.requires_grad_(True)
    ops.combine(rows, places, weights).sum().backward()
    assert (weights.grad - rows.sum(1)[places]).abs().max() < 1e-5


def mixture(*, score: str = "sigmoid", bias: bool = True) -> MoE:
    generator = torch.Generator().manual_seed(7)
    options = {"score": score, "normalise": True, "scale": 1.5, "groups": 4, "active_groups": 2, "bias": bias}
    router = Router(24, 16, 3, **options)  # type: ignore[arg-type]
    kinds = {"dtype": torch.float32, "activation_dtype": torch.float32}
    experts = Experts(24, 16, 40, activation="silu", **kinds)  # type: ignore[arg-type]
    for weight in (*router.parameters(), *experts.parameters()):
        weight.data.normal_(generator=generator).div_(weight.shape[-1] ** 0.5 if weight.dim() > 1 else 4)
    return MoE(router, experts, None).requires_grad_(False)


def by_loop(layer: MoE, x: Tensor) -> Tensor:
    """Token by token in float64, from what the router chose."""
    weights, chosen, _ = layer.router(x)
    gate, up, down = (getattr(layer.experts, f"{name}_proj").weight.double() for name in ("gate", "up", "down"))
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(x.double()):
        for weight, e in zip(weights[token].double(), chosen[token].tolist(), strict=True):
            out[token] += weight * (down[e] @ (torch.nn.functional.silu(gate[e] @ row) * (up[e] @ row)))
    return out


@torch.no_grad()
@pytest.mark.parametrize(("score", "bias"), [("sigmoid", True), ("softmax", False)])
def test_a_packed_mixture_is_the_plain_one(score: str, bias: bool) -> None:
    layer, x = mixture(score=score, bias=bias), torch.randn(70, 24, generator=torch.Generator().manual_seed(8))
    plain, want = layer(x), by_loop(layer, x)
    counted = layer.expert_tokens.clone()
    pack_linears(layer)
    pack_linears(layer)  # once more changes nothing
    assert isinstance(layer.router.weight, ops.PackedWeight)
    got = layer(x)
    assert (got - want).abs().max() < 1e-4 and (plain - want).abs().max() < 1e-4 and want.std() > 0.1
    assert torch.equal(layer.expert_tokens, 2 * counted) and int(counted.sum()) == 70 * 3
    for row in (0, 33, 69):
        assert torch.equal(bits(layer(x[row : row + 1])[0]), bits(got[row])), "whatever the batch"


@torch.no_grad()
def test_a_recorded_mixture_follows_its_input_and_counts() -> None:
    layer = mixture()
    pack_linears(layer)
    x = torch.randn(5, 24)
    recording = Recording(native.library, Arena())
    recording.make(lambda: (layer(x),))
    assert recording.foreign is None
    for seed in range(4):
        x.copy_(torch.randn(5, 24, generator=torch.Generator().manual_seed(seed)))
        before = layer.expert_tokens.clone()
        got = recording.replay()[0].clone()
        counted = layer.expert_tokens - before
        assert torch.equal(bits(got), bits(layer(x)))
        assert torch.equal(layer.expert_tokens - before, 2 * counted) and int(counted.sum()) == 15


def test_hostile_sizes_and_ids_raise() -> None:
    scores, chosen, weights = torch.rand(2, 6), torch.tensor([[0, 5], [1, 2]]), torch.rand(2, 2)
    for active, groups, active_groups in ((0, 1, 1), (7, 1, 1), (3, 3, 1), (1, 4, 1), (1, 2, 3), (1, 0, 1), (-1, 1, 1)):
        with pytest.raises((ValueError, RuntimeError)):
            ops.route(scores, None, active, groups=groups, active_groups=active_groups)
    with pytest.raises(ValueError, match="best two"):
        ops.route(scores, torch.zeros(6), 1, groups=6, active_groups=1)
    for wrong in (6, -1, 1 << 40):
        ids = chosen.clone()
        ids[1, 1] = wrong
        with pytest.raises(ValueError, match="no such expert"):
            ops.route_weights(scores, ids, normalise=False, scale=1.0)
        with pytest.raises(ValueError, match="no such expert"):
            ops.by_expert(ids, torch.zeros(6, dtype=torch.int64))
        with pytest.raises(ValueError, match="no such row"):
            ops.combine(torch.rand(5, 3), ids, weights)
    with pytest.raises(TypeError):
        ops.by_expert(chosen.int(), torch.zeros(6, dtype=torch.int64))
    library = native.library
    x, ids = scores.data_ptr(), chosen.data_ptr()
    for call in (
        lambda: library.scores(x, -1, 6, 6, False, x),
        lambda: library.scores(x, 2, 0, 6, False, x),
        lambda: library.scores(0, 2, 6, 6, False, x),
        lambda: library.scores(x, 1 << 40, 1 << 40, 6, False, x),
        lambda: library.route(x, 2, 6, -6, 0, 1, 1, 1, ids),
        lambda: library.by_expert(ids, 1 << 31, 2, 6, ids, ids, ids, ids),
        lambda: library.combine(x, False, 2, 6, 6, ids, x, 2, 0, x),
        lambda: library.combine(x, False, 2, 6, -6, ids, x, 2, 1, x),
    ):
        with pytest.raises(ValueError):
            call()
