"""The native kernels as functions of tensors. Only its own floor calls it.

Addresses pass to C++ here, and in `grouped` and `sampling` through `address` alone.

Tensors are checked here: on the CPU, of a dtype the kernel reads, the elements of a row side by side. What is passed
stays alive through the call, and through every replay of a recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.kernels import built, pages, recording
from deepseek_r1.kernels.recording import empty
from deepseek_r1.kernels.spans import Spans

FLOATS = (torch.float32, torch.bfloat16)


library = built.load()
"""The extension module, or None where torch has to do."""


def address(tensor: Tensor | None, *dtypes: torch.dtype) -> int:
    """Where the elements of `tensor` begin; 0 for None. Raises `TypeError` or `ValueError` for what can't be read."""
    if tensor is None:
        return 0
    if tensor.device.type != "cpu" or (dtypes and tensor.dtype not in dtypes):
        raise TypeError(f"a kernel for {', '.join(map(str, dtypes))} on the CPU was given {tensor.dtype}")
    if tensor.numel() and tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        raise ValueError("the elements of a row must lie side by side")
    made = recording.current()
    if made is not None:
        made.keep(tensor)
    return tensor.data_ptr()


def rows(x: Tensor) -> tuple[Tensor, int]:
    """x (..., width) as (rows, width) and the distance between rows: a copy only where no one distance would do."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if flat.stride(-1) != 1 and flat.shape[-1] != 1:
        flat = flat.contiguous()
    return flat, max(flat.stride(0), flat.shape[1])


GATES = ("silu", "gelu_tanh")


def linear(
    x: Tensor, weight: Any, width: int, bias: Tensor | None, out_dtype: torch.dtype, gate: str | None = None
) -> Tensor:
    """x (rows, in) float32 or bfloat16, `weight` a `_native.Weight` -> (rows, width) in `out_dtype`.

    `width` is the weight's rows. With a gate, which the weight has to know (`fuses_gate`), it is half of them.
    """
    flat, step = rows(x)
    count = flat.shape[0]
    codes, act = room(weight, count)
    out = empty((count, width), out_dtype)
    library.linear(
        weight,
        address(flat, *FLOATS),
        flat.dtype is torch.bfloat16,
        count,
        step,
        address(codes),
        address(act),
        address(bias, torch.float32),
        address(out, *FLOATS),
        out_dtype is torch.bfloat16,
        width,
        -1 if gate is None else GATES.index(gate),
    )
    return out


def room(weight: Any, count: int) -> tuple[Tensor | None, Tensor | None]:
    """Room for what a product of `count` rows reads, where it prepares them: codes, and their scales."""
    if not weight.prepares:
        return None, None
    nbytes, floats = weight.room(count)
    return empty((nbytes,), torch.uint8), empty((floats,), torch.float32) if floats else None


def unpack_rows(weight: Any, ids: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (n,) of a packed weight -> (n, width) in `dtype`. The caller has checked the ids."""
    out = empty((ids.shape[0], width), dtype)
    library.unpack_rows(weight, address(ids, torch.int64), ids.shape[0], address(out), dtype is torch.bfloat16)
    return out


def pack_rows(weight: Any, data: Tensor, first: int, values: Tensor, *numbers: Tensor | None) -> None:
    """Write contiguous rows into the packed bytes `data` of `weight`, from row `first` on.

    `numbers`: float32, a quantised weight's scales, minima and scales of rows; those that it has none of are None.
    """
    values = values.contiguous()
    whole = [None if t is None else t.contiguous() for t in numbers or (None, None, None)]
    addresses = (address(t, torch.float32) for t in whole)
    library.pack_rows(weight, address(data), first, len(values), address(values), *addresses)


def by_head(x: Tensor) -> tuple[Tensor, int, int, int, int, int]:
    """x (T, dim) or (T, heads, dim), and its (tokens, heads, dim, distance between tokens, between heads)."""
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    if x.dim() == 3:
        return x, *x.shape, x.stride(0), x.stride(1)
    flat, step = rows(x)
    return flat, flat.shape[0], 1, flat.shape[1], step, flat.shape[1]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `ops.rms_norm`."""
    flat, *sizes = by_head(x)
    out = empty(tuple(x.shape), weight.dtype)
    dim = x.shape[-1]
    bf16 = weight.dtype is torch.bfloat16
    there = (address(out), bf16, sizes[1] * dim, dim)
    library.rms_norm(
        address(flat, *FLOATS), flat.dtype is torch.bfloat16, *sizes, address(weight, *FLOATS), bf16, eps, *there
    )
    return out


def rotary(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `ops.rotary`."""
    half = frequencies.shape[0]
    shape = (positions.shape[0], 1, 2 * half)
    cos, sin = empty(shape, dtype), empty(shape, dtype)
    library.rotary(
        address(positions, torch.int64),
        positions.shape[0],
        address(frequencies, torch.float32),
        half,
        factor,
        address(cos, *FLOATS),
        address(sin, *FLOATS),
        dtype is torch.bfloat16,
    )
    return cos, sin


def rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """See `ops.rope`."""
    flat, *sizes = by_head(x)
    out = empty(tuple(x.shape), cos.dtype)
    _, heads, dim = x.shape
    bf16 = cos.dtype is torch.bfloat16
    library.rope(
        address(flat, *FLOATS),
        flat.dtype is torch.bfloat16,
        *sizes,
        address(cos, *FLOATS),
        address(signed_sin, cos.dtype),
        bf16,
        cos.shape[-1],
        address(out),
        bf16,
        heads * dim,
        dim,
    )
    return out


def gated(activation: str, gate: Tensor, up: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.gated`."""
    (x, x_step), (y, y_step) = rows(gate), rows(up)
    out = empty(tuple(gate.shape), dtype)
    there = (address(out, *FLOATS), dtype is torch.bfloat16, x.shape[1])
    bf16 = x.dtype is torch.bfloat16
    library.gated(
        GATES.index(activation), address(x, *FLOATS), address(y, x.dtype), bf16, *x.shape, x_step, y_step, *there
    )
    return out


def add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """See `ops.add`."""
    out = empty(tuple(x.shape), x.dtype)
    _add(x, y, scale, out.view(-1, x.shape[-1]))
    return out


def add_into(x: Tensor, y: Tensor, scale: float) -> None:
    """See `ops.add_into`."""
    _add(x, y, scale, x)


def _add(x: Tensor, y: Tensor, scale: float, out: Tensor) -> None:
    (left, x_step), (right, y_step) = rows(x), rows(y)
    bf16 = x.dtype is torch.bfloat16
    library.add(
        address(left, *FLOATS),
        bf16,
        address(right, *FLOATS),
        right.dtype is torch.bfloat16,
        scale,
        *left.shape,
        x_step,
        y_step,
        address(out),
        bf16,
        max(out.stride(0), out.shape[1]),
    )


def copy(x: Tensor, index: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * x[index] in `dtype`: x (rows, dim), index (n,) int64 or None for all rows. The caller has checked it."""
    flat, step = rows(x)
    count = flat.shape[0] if index is None else index.shape[0]
    out = empty((count, flat.shape[1]) if index is not None else tuple(x.shape), dtype)
    there = (address(out, *FLOATS), dtype is torch.bfloat16, flat.shape[1])
    taken = address(index, torch.int64)
    bf16 = flat.dtype is torch.bfloat16
    library.copy(address(flat, *FLOATS), bf16, taken, scale, count, flat.shape[1], step, *there)
    return out


def join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """See `ops.join`."""
    width = sum(part.shape[-1] for part in parts)
    out = empty((*parts[0].shape[:-1], width), dtype)
    first = 0
    for part in parts:
        flat, step = rows(part)
        last = first + flat.shape[1]
        there = (address(out.view(-1, width)[:, first:last]), dtype is torch.bfloat16, width)
        library.copy(address(flat, *FLOATS), flat.dtype is torch.bfloat16, 0, 1.0, *flat.shape, step, *there)
        first = last
    return out


_STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


def row_layout(dtype: torch.dtype, heads: int, key_dim: int, value_dim: int, shared: bool) -> Any:
    """The `_native.RowLayout` of a pool of this dtype."""
    return library.RowLayout(_STORAGE[dtype], heads, key_dim, value_dim, shared)


def kv_write(pool: Tensor, layout: Any, slots: Tensor, k: Tensor, v: Tensor | None) -> None:
    """Store k (T, heads, key_dim) and v (T, heads, value_dim) in rows `slots` (T,) of the pool."""
    k, tokens, _, _, *k_steps = by_head(k)
    v_steps = [0, 0]
    if v is not None:
        v, _, _, _, *v_steps = by_head(v if v.dtype is k.dtype else v.to(k.dtype))
    bf16 = k.dtype is torch.bfloat16
    library.kv_write(
        *(address(k, *FLOATS), address(v, *FLOATS), bf16, tokens, *k_steps, *v_steps),
        *(address(slots, torch.int64), address(pool), layout),
    )


def attention(q: Tensor, pool: Tensor, layout: Any, value_dim: int, spans: Spans, window: int, scale: float) -> Tensor:
    """q (T, heads, key_dim) of `spans` over pool (blocks, slots, width) -> (T, heads, value_dim) in q's dtype."""
    flat, tokens, heads, _, *steps = by_head(q)
    out = empty((tokens, heads, value_dim), q.dtype)
    bf16 = q.dtype is torch.bfloat16
    scratch = None
    floats = 0
    if tokens <= SHARED_ROWS:
        floats = library.attention_scratch(tokens, heads, value_dim, spans.reach)
        scratch = empty((floats,), torch.float32)
    library.attention(
        *(address(flat, *FLOATS), bf16, tokens, heads, *steps),
        *(address(pool), layout, pool.shape[0], pool.shape[1]),
        *(address(spans.count, torch.int64), address(spans.table, torch.int64), spans.table.shape[0]),
        *(address(spans.blocks, torch.int32), spans.blocks.shape[0]),
        *(window, scale, address(out), bf16, address(scratch), floats),
    )
    return out


SHARED_ROWS = 8
"""Up to so many rows, long contexts are shared out among the threads; more rows keep them busy anyway."""


def threads() -> int:
    """How many threads the native kernels run on; 1 without them."""
    return 1 if library is None else int(library.threads())


def set_threads(count: int) -> None:
    """Run the native kernels on so many threads (the caller's is one). Results don't depend on it."""
    if library is not None:
        library.set_threads(count)


def read_bandwidth(seconds: float, nbytes: int = 512 << 20) -> float:
    """Bytes per second that all threads together read from memory at best, within `seconds`. Native kernels only."""
    data = pages.huge(nbytes)
    data.fill_(1)  # pages that were never written all read the same memory
    return float(library.read_bandwidth(address(data), nbytes, seconds))


def peak(kind: str, seconds: float) -> float:
    """Operations per second ("int8", "bf16", "fp32"; a multiply-add is two) of all threads, the best within `seconds`.

    Native kernels only; raises `ValueError` where the processor lacks the instructions.
    """
    return float(library.peak(kind, seconds))
