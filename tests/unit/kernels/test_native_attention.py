"""Paged attention against its definition in float64; and a query's bits depend on its sequence alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_r1.kernels import native
from deepseek_r1.kernels.spans import Spans
from support.native_paths import PATHS, bits, native_path

INT8 = torch.int8
STORAGES = [torch.float32, torch.bfloat16, INT8]
SOME = settings(max_examples=20, deadline=None)
paths = pytest.mark.parametrize("path", PATHS)


@dataclass(frozen=True)
class Shape:
    """Of a layer's attention; `shared`: the values are the key head's first columns."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    shared: bool = False
    window: int = 0
    storage: torch.dtype = torch.float32


class Pool:
    """Blocks in random order, of which nobody has written anything yet: every byte is that of a NaN."""

    def __init__(self, shape: Shape, blocks: int, size: int, seed: int = 0) -> None:
        self.shape = shape
        self.size = size
        code = STORAGES.index(shape.storage)
        self.layout = native.library.RowLayout(code, shape.kv_heads, shape.key_dim, shape.value_dim, shape.shared)
        self.rows = torch.full((blocks, size, self.layout.nbytes), 0xFF, dtype=torch.uint8)
        self.free = random.Random(seed).sample(range(blocks), blocks)

    def take(self, length: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-length // self.size))]

    def write(self, spans: Spans, k: Tensor, v: Tensor | None) -> None:
        native.kv_write(self.rows, self.layout, spans.slots, k, v)

    def attend(self, q: Tensor, spans: Spans, scale: float) -> Tensor:
        return native.attention(q, self.rows, self.layout, self.shape.value_dim, spans, self.shape.window, scale)


def stored(x: Tensor, storage: torch.dtype) -> Tensor:
    """What a pool gives back of heads (T, K, D), in float32."""
    if storage is not INT8:
        return x.to(storage).float()
    step = x.float().abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, (x.float() / step).round(), torch.zeros(())).clamp(-127, 127) * step


def defined(q: Tensor, k: Tensor, v: Tensor, start: int, window: int, scale: float) -> Tensor:
    """Softmax attention in float64: q (n, H, D) at positions start …, k, v (L, K, D) of the whole sequence."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=torch.float64)
    for i in range(q.shape[0]):
        first = max(0, start + i + 1 - window) if window else 0
        seen = slice(first, start + i + 1)
        scores = torch.einsum("hd,lhd->hl", q[i].double(), k[seen]) * scale
        out[i] = torch.einsum("hl,lhd->hd", torch.softmax(scores, -1), v[seen])
    return out


def inputs(
    shape: Shape, tokens: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None]:
    """q, k, v as they stand side by side in one projection's output."""
    rng = torch.Generator().manual_seed(seed)
    widths = [shape.heads * shape.key_dim, shape.kv_heads * shape.key_dim, shape.kv_heads * shape.value_dim]
    flat = 1.5 * torch.randn(tokens, sum(widths) + 3, generator=rng)
    q, k, v, _ = flat.to(dtype).split([*widths, 3], dim=1)
    heads, kv_heads = shape.heads, shape.kv_heads
    values = None if shape.shared else v.unflatten(1, (kv_heads, shape.value_dim))
    return q.unflatten(1, (heads, shape.key_dim)), k.unflatten(1, (kv_heads, shape.key_dim)), values


shapes = st.builds(
    lambda kv, group, key, value, shared, window, storage: (
        Shape(group, 1, key, min(value, key), True, window, storage)
        if shared
        else Shape(kv * group, kv, key, value, False, window, storage)
    ),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([0, 0, 1, 7, 64, 100]),
    st.sampled_from(STORAGES),
)


@paths
@SOME
@given(
    shapes,
    st.lists(st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 2, 5, 70])), min_size=1, max_size=5),
    st.sampled_from([1, 5, 16, 64]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_spans_of_any_mix(
    path: str, shape: Shape, spans: list[tuple[int, int]], size: int, seed: int, dtype: torch.dtype
) -> None:
    pool = Pool(shape, sum(-(-(start + count) // size) for start, count in spans) + 3, size, seed)
    scale = 1.3 / math.sqrt(shape.key_dim)
    blocks = [pool.take(start + count) for start, count in spans]
    # The tiles of AMX take queries and weights in bf16 where keys and values are.
    tiles = path == "amx" and shape.storage is torch.bfloat16
    news, wants = [], []
    with native_path(path):
        for i, ((start, count), ids) in enumerate(zip(spans, blocks, strict=True)):
            q, k, v = inputs(shape, start + count, seed + i, dtype)
            pool.write(Spans.of([(0, start + count, ids)], size), k, v)
            keys = stored(k, shape.storage)
            values = keys[..., : shape.value_dim] if v is None else stored(v, shape.storage)
            news.append(q[start:])
            asked = q[start:].bfloat16().to(dtype) if tiles else q[start:]
            wants.append(defined(asked, keys, values, start, shape.window, scale))
        step = Spans.of([(start, count, ids) for (start, count), ids in zip(spans, blocks, strict=True)], size)
        got = pool.attend(torch.cat(news), step, scale)
    assert got.dtype == dtype
    want = torch.cat(wants)
    bound = 2**-7 if dtype is torch.bfloat16 or tiles else 2e-5
    assert (got.double() - want).abs().max() <= bound * max(1, want.abs().max().item())


@paths
@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [Shape(9, 3, 64, 64), Shape(14, 2, 80, 80, False, 50), Shape(16, 1, 72, 64, True)],
    ids=["9x64", "window", "latent"],
)
def test_a_querys_bits_depend_on_its_sequence_alone(path: str, storage: torch.dtype, shape: Shape) -> None:
    shape = Shape(shape.heads, shape.kv_heads, shape.key_dim, shape.value_dim, shape.shared, shape.window, storage)
    length, scale = 450, 0.2
    q, k, v = inputs(shape, length, 1)
    neighbour, other_k, other_v = inputs(shape, 300, 2)
    rng = random.Random(3)
    with native_path(path, 1):
        pool = Pool(shape, 40, 16)
        whole = Spans.of([(0, length, pool.take(length))], 16)
        pool.write(whole, k, v)
        want = bits(pool.attend(q, whole, scale))
    for threads, size, chunks in ((2, 16, [1] * 3), (1, 33, [300]), (2, 7, [1, 20, 64]), (3, 450, [5, 200])):
        with native_path(path, threads):
            pool = Pool(shape, 2 * 600 // size + 4, size, threads)
            mine, theirs = pool.take(length), pool.take(300)
            pool.write(Spans.of([(0, 300, theirs)], size), other_k, other_v)
            start = 0
            while start < length:
                count = min(rng.choice(chunks) if start > 250 else 250, length - start)
                spans = [(start, count, mine)]
                rows = [q[start : start + count]]
                alone = Spans.of(spans, size)
                pool.write(alone, k[start : start + count], None if v is None else v[start : start + count])
                if rng.random() < 0.5:  # with another sequence, before it or behind it
                    place = rng.randrange(2)
                    spans.insert(place, (299, 1, theirs))
                    rows.insert(place, neighbour[299:])
                got = pool.attend(torch.cat(rows), Spans.of(spans, size), scale)
                first = sum(n for _, n, ids in spans[: [ids is mine for _, _, ids in spans].index(True)])
                assert torch.equal(bits(got[first : first + count]), want[start : start + count]), (
                    threads,
                    start,
                    count,
                )
                start += count


@paths
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 1500])
def test_long_sequences_are_shared_out_and_merged(path: str, length: int) -> None:
    shape = Shape(6, 2, 32, 48, storage=torch.bfloat16)
    q, k, v = inputs(shape, length, 7)
    pool = Pool(shape, length // 16 + 2, 16)
    ids = pool.take(length)
    results = []
    for threads in (1, 2, 4):
        for count in (1, 3):
            with native_path(path, threads):
                start = max(length - count, 0)
                pool.write(Spans.of([(0, length, ids)], 16), k, v)
                results.append(pool.attend(q[start:], Spans.of([(start, length - start, ids)], 16), 0.3)[-1])
    want = defined(q[-1:], stored(k, shape.storage), stored(v, shape.storage), length - 1, 0, 0.3)[0]
    assert (results[0].double() - want).abs().max() < (3e-2 if path == "amx" else 1e-5)
    assert all(torch.equal(bits(one), bits(results[0])) for one in results)


@paths
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, 1e-42, 0.0], ids=str)
def test_extreme_values_reach_only_the_queries_that_see_them(path: str, value: float) -> None:
    # On AMX with bf16 rows, so that its own kernel is what is tested.
    tiled = path == "amx"
    shape = Shape(4, 2, 32, 40, storage=torch.bfloat16 if tiled else torch.float32)
    q, k, v = inputs(shape, 130, 5)
    assert v is not None
    k, v = k.clone(), v.clone()
    pool = Pool(shape, 10, 16)
    spans = Spans.of([(0, 130, pool.take(130))], 16)
    with native_path(path):
        pool.write(spans, k, v)
        clean = pool.attend(q, spans, 0.2)
        v[70, 1] = value
        pool.write(spans, k, v)
        got = pool.attend(q, spans, 0.2)
        k[90, 0] = min(value, 1e30) if math.isfinite(value) else value  # or the scores would overflow
        pool.write(spans, k, v)
        more = pool.attend(q, spans, 0.2)
    assert torch.equal(bits(got[:70]), bits(clean[:70])) and torch.equal(bits(got[:, :2]), bits(clean[:, :2]))
    assert torch.equal(bits(more[:90]), bits(got[:90])) and torch.equal(bits(more[:, 2:]), bits(got[:, 2:]))
    want = defined(q, stored(k, shape.storage), stored(v, shape.storage), 0, 0, 0.2).float()
    near = {"rtol": 4e-2, "atol": 2e-2} if tiled else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(more, want, **near, equal_nan=True)


def test_scores_that_are_minus_infinity_weigh_nothing() -> None:
    shape = Shape(1, 1, 4, 4)
    q, k, v = torch.ones(70, 1, 4), torch.zeros(70, 1, 4), torch.randn(70, 1, 4)
    k[:65] = -math.inf
    pool = Pool(shape, 5, 16)
    spans = Spans.of([(0, 70, pool.take(70))], 16)
    pool.write(spans, k, v)
    got = pool.attend(q, spans, 1.0)
    assert bool(got[:65].isnan().all())  # as a softmax over nothing but -infinity
    torch.testing.assert_close(got[69], v[65:70].mean(0))


def test_int8_rows_are_codes_and_a_scale_per_head() -> None:
    shape = Shape(2, 2, 20, 12, storage=INT8)
    pool = Pool(shape, 2, 4)
    assert pool.layout.nbytes == 2 * (20 + 12) + 4 * 4
    k, v = torch.randn(3, 2, 20), torch.randn(3, 2, 12)
    k[0, 0], v[1, 1, 3], k[2, 1] = 0.0, math.inf, torch.full((20,), 1e-44)
    native.kv_write(pool.rows, pool.layout, torch.tensor([5, -1, 2]), k, v)
    rows = pool.rows.view(8, -1)
    for slot, token in ((5, 0), (2, 2)):
        codes = rows[slot, :64].view(torch.int8).float()
        scales = rows[slot, 64:].view(torch.float32)
        want = torch.cat((stored(k[token : token + 1], INT8).flatten(), stored(v[token : token + 1], INT8).flatten()))
        got = codes * torch.cat((scales[:2].repeat_interleave(20), scales[2:].repeat_interleave(12)))
        assert torch.equal(got, want)
    assert bool((rows[[0, 1, 3, 4, 6, 7]] == 0xFF).all()), "a negative slot stores nothing, and nothing else is touched"
    native.kv_write(pool.rows, pool.layout, torch.tensor([0, 1, 2]), k, v)
    assert bool(rows[1, 64 + 12 :].view(torch.float32).isnan()), "what holds an infinity reads back as NaN"


def test_hostile_sizes_raise() -> None:
    shape = Shape(2, 1, 8, 8)
    pool = Pool(shape, 4, 16)
    q = torch.zeros(3, 2, 8)
    for start, count, ids in ((0, 3, [4]), (0, 3, [-1]), (-1, 3, [0]), (0, -1, [0]), (2**60, 1, [0]), (16, 1, [0])):
        spans = Spans(3, 1, 1, 16)
        spans.count[0] = 1
        spans.table[0] = torch.tensor([0, count, start, 0])
        spans.blocks[0] = ids[0]
        with pytest.raises(ValueError, match="attention: "):
            pool.attend(q, spans, 1.0)
    good = Spans.of([(0, 3, [0])], 16)
    for field, value in ((good.table[0], 1), (good.count, 2), (good.count, -1)):
        before = field.clone()
        field[0] = value
        with pytest.raises(ValueError, match="attention: "):
            pool.attend(q, good, 1.0)
        field.copy_(before)
    with pytest.raises(ValueError, match="multiple of the key heads"):
        Pool(Shape(3, 2, 8, 8), 4, 16).attend(torch.zeros(3, 3, 8), good, 1.0)
    with pytest.raises(ValueError, match="window"):
        Pool(Shape(2, 1, 8, 8, window=-1), 4, 16).attend(q, good, 1.0)
