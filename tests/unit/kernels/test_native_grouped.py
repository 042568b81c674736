"""Stacks of packed weights on every path: each member's part is its own packed product, in any batch and routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_r1.kernels import native, ops, pages, reference
from deepseek_r1.kernels.quantised import QuantisedWeight, quantise
from deepseek_r1.kernels.recording import Arena, Recording
from support.native_paths import PATHS, bits, native_path

FORMS = ["fp32", "bf16", "int8", "int4", "int4-minima", "int4-multiples"]
Members = list[Tensor] | list[QuantisedWeight]


def members(form: str, count: int, out: int, inner: int, seed: int = 0) -> Members:
    weight = torch.randn(count, out, inner, generator=torch.Generator().manual_seed(seed)) / inner**0.5
    if form.startswith("int"):
        group, width = (128, 8) if form == "int8" else (32, 4)
        options = {name: form.endswith(name) for name in ("minima", "multiples")}
        return [quantise(each, width, group, **options) for each in weight]
    return list(weight.to(torch.float32 if form == "fp32" else torch.bfloat16))


def values(given: Members) -> Tensor:
    return torch.stack([m.dequantise() if isinstance(m, QuantisedWeight) else m for m in given]).double()


def inputs(form: str, *shape: int, seed: int = 1) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.bfloat16() if form == "bf16" else x


def ends_of(counts: list[int]) -> Tensor:
    return torch.tensor(counts).cumsum(0, dtype=torch.int32)


def alone(x: Tensor, weight: Tensor | QuantisedWeight) -> Tensor:
    """The packed product with one member, which has tests of its own."""
    return ops.linear(x, ops.PackedWeight([weight]))


SIZES = {
    "out": st.integers(1, 130),
    "inner": st.integers(1, 150),
    "count": st.integers(1, 6),
    "seed": st.integers(0, 9),
}


@settings(max_examples=15, deadline=None)
@given(**SIZES, tokens=st.integers(0, 7))
@pytest.mark.parametrize("form", FORMS)
def test_heads_have_the_bits_of_their_own_product(
    form: str, out: int, inner: int, count: int, seed: int, tokens: int
) -> None:
    given = members(form, count, out, inner, seed)
    x = inputs(form, tokens, count, inner + 5, seed=seed)[:, :, 2 : inner + 2]  # rows that don't touch
    for path in PATHS:
        with native_path(path):
            got = ops.head_linear(x, ops.PackedStack(given))
            assert got.shape == (tokens, count, out)
            for head, weight in enumerate(given):
                assert torch.equal(bits(got[:, head]), bits(alone(x[:, head], weight))), path


@settings(max_examples=15, deadline=None)
@given(**SIZES, data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_experts_have_the_bits_of_their_own_product(
    form: str, out: int, inner: int, count: int, seed: int, data: st.DataObject
) -> None:
    """Empty experts among them; more rows than share a pass over a panel."""
    counts = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 97, 200]), min_size=count, max_size=count))
    given = members(form, count, out, inner, seed)
    x = inputs(form, sum(counts), inner + 3, seed=seed)[:, 1 : inner + 1]
    for path in PATHS:
        with native_path(path):
            got = ops.expert_linear(x, ops.PackedStack(given), ends_of(counts))
            assert got.shape == (sum(counts), out)
            for part, mine, weight in zip(got.split(counts), x.split(counts), given, strict=True):
                assert torch.equal(bits(part), bits(alone(mine, weight))), path


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", FORMS)
def test_they_are_near_the_reference(form: str, path: str) -> None:
    given, counts = members(form, 5, 70, 96), [3, 0, 9, 1, 20]
    x, heads = inputs(form, 33, 96), inputs(form, 8, 5, 96)
    want, want_heads = values(given), heads.double()
    with native_path(path):
        stack = ops.PackedStack(given)
        got, got_heads = ops.expert_linear(x, stack, ends_of(counts)), ops.head_linear(heads, stack)
    products = torch.cat([part @ weight.T for part, weight in zip(x.double().split(counts), want, strict=True)])
    bound = {"fp32": 1e-5, "bf16": 2e-2}.get(form, 5e-2)  # codes of activations have 8 bits
    assert got.dtype == got_heads.dtype == (torch.bfloat16 if form == "bf16" else torch.float32)
    assert (got - products).abs().max() < bound * products.std() + bound
    assert (got_heads - reference.head_linear(want_heads, want)).abs().max() < bound * products.std() + bound


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", FORMS)
def test_threads_and_batches_do_not_change_a_bit(form: str, path: str) -> None:
    given = members(form, 4, 200, 160)
    x, heads = inputs(form, 260, 160), inputs(form, 130, 4, 160)
    whole = None
    for threads in (1, 2, 3):
        with native_path(path, threads):
            stack = ops.PackedStack(given)
            got = ops.expert_linear(x, stack, ends_of([0, 131, 2, 127])), ops.head_linear(heads, stack)
            whole = whole or got
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(got, whole, strict=True))
            # Of the second expert's rows the first five, and one of the last's.
            some = ops.expert_linear(torch.cat((x[:5], x[259:])), stack, ends_of([0, 5, 0, 1]))
            assert torch.equal(bits(some), bits(torch.cat((got[0][:5], got[0][259:]))))
            for count in (1, 2, 3, 96, 97):
                assert torch.equal(bits(ops.head_linear(heads[:count], stack)), bits(got[1][:count]))


def test_all_rows_may_be_one_experts() -> None:
    given = members("fp32", 64, 16, 24)
    x = inputs("fp32", 300, 24)
    got = ops.expert_linear(x, ops.PackedStack(given), ends_of([0] * 41 + [300] + [0] * 22))
    assert torch.equal(got, alone(x, given[41]))


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_replay_follows_the_ends_in_memory(form: str) -> None:
    stack, x, ends = ops.PackedStack(members(form, 4, 65, 40)), inputs(form, 130, 40), ends_of([130, 0, 0, 0])
    recording = Recording(native.library, Arena())
    recording.make(lambda: (ops.expert_linear(x, stack, ends),))
    assert recording.foreign is None
    for counts in ([0, 130, 0, 0], [1, 2, 3, 124], [40, 0, 0, 90], [130, 0, 0, 0]):
        ends.copy_(ends_of(counts))
        x.copy_(inputs(form, 130, 40, seed=sum(counts[:2])))
        assert torch.equal(bits(recording.replay()[0]), bits(ops.expert_linear(x, stack, ends)))


def test_bf16_rows_are_read_by_fp32_weights() -> None:
    stack = ops.PackedStack(members("fp32", 3, 10, 12))
    x = torch.randn(4, 3, 12).bfloat16()
    assert torch.equal(ops.head_linear(x, stack), ops.head_linear(x.float(), stack))
    flat, ends = x[:, 0], ends_of([1, 0, 3])
    assert torch.equal(ops.expert_linear(flat, stack, ends), ops.expert_linear(flat.float(), stack, ends))


def test_stacks_reopen_and_refuse_what_does_not_fit() -> None:
    given = members("int4", 3, 20, 64)
    stack, x = ops.PackedStack(given), torch.randn(5, 3, 64)
    again = ops.PackedStack.from_blob(stack.blob, stack.spec)
    assert torch.equal(ops.head_linear(x, again), ops.head_linear(x, stack)) and again.nbytes == stack.nbytes
    with pytest.raises(ValueError, match="shapes or formats"):
        ops.PackedStack([given[0], members("int4-minima", 1, 20, 64)[0]])
    with pytest.raises(ValueError, match="shapes or formats"):
        ops.PackedStack([torch.zeros(4, 5), torch.zeros(5, 4)])
    with pytest.raises(ValueError, match="another size"):
        ops.PackedStack.from_blob(stack.blob[:-64], stack.spec)
    with pytest.raises(ValueError, match="aligned"):
        ops.PackedStack.from_blob(torch.cat((stack.blob, stack.blob))[1 : 1 + stack.nbytes], stack.spec)
    for count in (0, -1, 1 << 50):
        with pytest.raises(ValueError):
            ops.PackedStack.from_blob(stack.blob, {**stack.spec, "count": count})
    for shape in ((5, 2, 64), (5, 3, 63)):
        with pytest.raises(ValueError, match="was given"):
            ops.head_linear(torch.randn(shape), stack)
    with pytest.raises(ValueError, match="was given"):
        ops.expert_linear(torch.randn(5, 63), stack, ends_of([1, 2, 2]))


@pytest.mark.parametrize("ends", [[1, 2, 4], [1, 2, 6], [3, 2, 5], [-1, 2, 5], [5, 5], [5, 5, 5, 5]])
def test_ends_that_do_not_fit_raise(ends: list[int]) -> None:
    stack = ops.PackedStack(members("fp32", 3, 20, 8))
    with pytest.raises(ValueError, match=r"\bends?\b"):
        ops.expert_linear(torch.randn(5, 8), stack, torch.tensor(ends, dtype=torch.int32))


def test_hostile_sizes_raise() -> None:
    library = native.library
    one = library.Weight(0, 0, 64, 8, "fp32", 0, False, False, False, 0)
    blob = pages.zeros(3 * one.nbytes)
    stack = library.Stack(one, 3, blob.data_ptr(), blob.numel())
    x, out, ends = torch.zeros(4, 3, 8), torch.zeros(4, 3, 64), ends_of([1, 1, 2])

    def heads(
        tokens: int = 4, x_token: int = 24, x_head: int = 8, out_token: int = 192, out_head: int = 64, bf16: int = 0
    ) -> None:
        where = x.data_ptr(), bool(bf16), tokens, x_token, x_head, 0, 0
        library.head_linear(stack, *where, out.data_ptr(), False, out_token, out_head)

    def experts(rows: int = 4, ldx: int = 8, ldo: int = 64, at: int = ends.data_ptr(), bf16: bool = False) -> None:
        library.expert_linear(stack, at, x.data_ptr(), bf16, rows, ldx, 0, 0, out.data_ptr(), False, ldo)

    heads()
    experts()
    for wrong in (
        *({"tokens": -1}, {"tokens": 1 << 60}, {"x_token": -1}, {"x_head": 1 << 50}),
        *({"out_head": 63}, {"out_token": 191}, {"bf16": 1}),
    ):
        with pytest.raises(ValueError):
            heads(**wrong)  # type: ignore[arg-type]
    for wrong in ({"rows": 5}, {"rows": -1}, {"rows": 1 << 60}, {"ldx": 7}, {"ldo": 63}, {"at": 0}, {"bf16": True}):
        with pytest.raises(ValueError):
            experts(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no data"):
        library.head_linear(library.Stack(one, 3, 0, 0), 0, False, 4, 24, 8, 0, 0, 0, False, 192, 64)
    coded = library.Stack(library.Weight(0, 0, 64, 8, "int8", 32, False, False, False, 0), 1, blob.data_ptr(), 64 * 34)
    with pytest.raises(ValueError, match="room"):
        library.head_linear(coded, x.data_ptr(), False, 1, 8, 8, 0, 0, out.data_ptr(), False, 64, 64)
