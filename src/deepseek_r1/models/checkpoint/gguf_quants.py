"""Dequantisation to float32, bit-equal to ggml's formulas, blocks taken apart as they are, and rounding to bfloat16.

The kernels work on chunks that fit in a core's cache: numpy makes several passes, and in cache those are cheap.
Block layouts: ggml's `block_*` structs, https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# dtype -> (elements per block, bytes per block)
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


def dequantise(dtype: str, blocks: Bytes, out: Floats) -> None:
    """Write the float32 values of `blocks` to `out`.

    `blocks` is (blocks, bytes per block), `out` (blocks * elements per block,), both C-contiguous. A hostile scale
    may be infinite or NaN: the values then are too, without a warning.
    """
    elements, _ = BLOCKS[dtype]
    with np.errstate(all="ignore"):
        _KERNELS[dtype](blocks, out.reshape(len(blocks), elements))


# dtype -> (bits, whether groups have minima): the types whose blocks are groups of 32 codes with a scale each
GROUPED: dict[str, tuple[int, bool]] = {"Q4_0": (4, False), "Q4_1": (4, True), "Q8_0": (8, False), "Q4_K": (4, True)}
GROUP = 32


def take_apart(dtype: str, blocks: Bytes, codes: Bytes, scales: Floats, minima: Floats | None) -> None:
    """Write the codes of `blocks`, and the scales and minima of their groups of 32, as float32.

    For the types in `GROUPED`. `codes` is (elements,), `scales` and `minima` (elements / 32,), all C-contiguous. 8-bit
    codes are the signed value + 128. scale * code + minimum, or scale * (code - 8 or 128), is what `dequantise` gives,
    bit for bit, where product and sum are rounded apart. A hostile scale may be infinite or NaN.
    """
    elements, _ = BLOCKS[dtype]
    rows = codes.reshape(len(blocks), elements)
    groups = scales.reshape(len(blocks), -1)
    with np.errstate(all="ignore"):
        if dtype == "Q8_0":
            np.bitwise_xor(blocks[:, 2:], 128, out=rows)  # adds 128 to a two's complement byte
        elif dtype == "Q4_K":
            found, lows = _k_scales(blocks)
            rows[...] = _k_nibbles(blocks[:, 16:]).reshape(rows.shape)
            groups[...] = found[:, :, 0]
            assert minima is not None
            np.negative(lows[:, :, 0], out=minima.reshape(groups.shape))
            return
        else:
            rows[...] = _nibbles(blocks[:, 4 if minima is not None else 2 :])
        groups[...] = _half(blocks, 0)
        if minima is not None:
            minima.reshape(groups.shape)[...] = _half(blocks, 2)


def round_to_bf16(values: Floats, out: npt.NDArray[np.uint16]) -> None:
    """Round float32 `values` to the nearest bfloat16, ties to even, and write the bits to `out`. A NaN stays a NaN."""
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    out[...] = rounded
    nans = np.isnan(values)
    if nans.any():
        out[nans] = (bits[nans] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x0040)


def _column(blocks: Bytes, start: int, dtype: str, count: int = 1) -> npt.NDArray[Any]:
    """`count` little-endian numbers of each block, from byte `start`: (blocks, count)."""
    stop = start + count * np.dtype(dtype).itemsize
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def _half(blocks: Bytes, start: int) -> Floats:
    return _column(blocks, start, "<f2").astype(np.float32)


def _f32(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view("<f4")


def _f16(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view("<f2")


def _bf16(blocks: Bytes, out: Floats) -> None:
    np.left_shift(blocks.view("<u2"), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


def _nibbles(packed: Bytes) -> Bytes:
    """(blocks, 16) bytes -> (blocks, 32): all low halves, then all high halves."""
    quants = np.empty((len(packed), 2, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=quants[:, 0])
    np.right_shift(packed, 4, out=quants[:, 1])
    return quants.reshape(len(packed), -1)


def _five_bits(blocks: Bytes, start: int) -> Bytes:
    """The 32 fifth bits at byte `start`, then 16 bytes of nibbles: (blocks, 32)."""
    quants = _nibbles(blocks[:, start + 4 : start + 20])
    high = np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little")
    high <<= 4
    quants |= high
    return quants


def _q4_0(blocks: Bytes, out: Floats) -> None:
    out[...] = _nibbles(blocks[:, 2:])
    out -= np.float32(8)
    out *= _half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    out[...] = _nibbles(blocks[:, 4:])
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    out[...] = _five_bits(blocks, 2)
    out -= np.float32(16)
    out *= _half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    out[...] = _five_bits(blocks, 4)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 groups of a Q4_K or Q5_K block, both (blocks, 8, 1); 6 bits each in 12 bytes."""
    low, middle, high = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1).astype(np.float32)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 2) & 48)], axis=1).astype(np.float32)
    scales *= _half(blocks, 0)
    minima *= _half(blocks, 2)
    return scales[:, :, None], minima[:, :, None]


def _k_nibbles(packed: Bytes) -> Bytes:
    """(blocks, 128) bytes -> (blocks, 8, 32): each 32 bytes hold two groups, the first in the low halves."""
    quants = np.empty((len(packed), 4, 2, 32), np.uint8)
    packed = packed.reshape(len(packed), 4, 32)
    np.bitwise_and(packed, 15, out=quants[:, :, 0])
    np.right_shift(packed, 4, out=quants[:, :, 1])
    return quants.reshape(len(packed), 8, 32)


def _q4_k(blocks: Bytes, out: Floats) -> None:
    scales, minima = _k_scales(blocks)
    groups = out.reshape(len(blocks), 8, 32)
    groups[...] = _k_nibbles(blocks[:, 16:])
    groups *= scales
    groups -= minima


def _q5_k(blocks: Bytes, out: Floats) -> None:
    scales, minima = _k_scales(blocks)
    quants = _k_nibbles(blocks[:, 48:])
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]  # bit g of byte i: element i of group g
    fifth &= 1
    fifth <<= 4
    quants |= fifth
    groups = out.reshape(len(blocks), 8, 32)
    groups[...] = quants
    groups *= scales
    groups -= minima


def _q6_k(blocks: Bytes, out: Floats) -> None:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)  # (blocks, halves, 1, bytes)
    quants = (low >> np.array([[0], [4]], np.uint8)).reshape(-1, 2, 4, 32)
    quants &= 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    high &= 3
    high <<= 4
    quants |= high
    scales = _column(blocks, 192, "i1", 16).astype(np.float32)
    scales *= _half(blocks, 208)
    groups = out.reshape(len(blocks), 16, 16)
    groups[...] = quants.reshape(-1, 16, 16)
    groups -= np.float32(32)
    groups *= scales[:, :, None]


_KERNELS: dict[str, Callable[[Bytes, Floats], None]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
