from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from deepseek_r1.models.checkpoint.gguf import TENSOR_TYPES
from deepseek_r1.models.checkpoint.gguf_quants import BLOCKS, dequantise, round_to_bf16

# Byte positions of the float16 scales (and minima) in each block.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(dtype: str, rows: int, blocks_per_row: int, seed: int) -> npt.NDArray[np.uint8]:
    """(rows, bytes) of arbitrary quants with scales of a model's size, negative and subnormal ones included."""
    rng = np.random.default_rng(seed)
    _, width = BLOCKS[dtype]
    if dtype in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, blocks_per_row * 32), dtype=np.float32)
        return gguf.quants.quantize(values, Type[dtype]).view(np.uint8)
    blocks = rng.integers(0, 256, (rows * blocks_per_row, width), dtype=np.uint8)
    for position in SCALES[dtype]:
        scales = (rng.standard_normal(len(blocks)) * 10.0 ** rng.integers(-7, 1, len(blocks))).astype(np.float16)
        blocks[:, position : position + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def ours(dtype: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    elements, width = BLOCKS[dtype]
    blocks = np.ascontiguousarray(raw).reshape(-1, width)
    out = np.full(len(blocks) * elements, np.nan, np.float32)
    dequantise(dtype, blocks, out)
    return out


@pytest.mark.parametrize("dtype", BLOCKS)
@pytest.mark.parametrize(("rows", "blocks_per_row"), [(1, 1), (3, 1), (7, 5), (33, 3)])
def test_dequantised_bits_equal_ggml(dtype: str, rows: int, blocks_per_row: int) -> None:
    raw = random_blocks(dtype, rows, blocks_per_row, seed=rows * 100 + blocks_per_row)
    reference = gguf.quants.dequantize(raw, Type[dtype])
    assert reference.std() > 0
    np.testing.assert_array_equal(ours(dtype, raw).view(np.uint32), reference.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_values_come_back_near(dtype: str) -> None:
    """Against the values themselves, not another dequantiser: half a step of the widest block bounds the error."""
    values = np.random.default_rng(5).standard_normal((9, 96), dtype=np.float32)
    back = ours(dtype, gguf.quants.quantize(values, Type[dtype])).reshape(values.shape)
    steps = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}[dtype]
    spread = np.ptp(values) if dtype.endswith("1") else np.abs(values).max()
    assert np.abs(back - values).max() <= spread / steps * 1.01
    assert np.corrcoef(back.reshape(-1), values.reshape(-1))[0, 1] > 0.99


@pytest.mark.parametrize("dtype", BLOCKS)
def test_any_bytes_dequantise_like_ggml_without_warnings(dtype: str) -> None:
    """Infinite and NaN scales included: a hostile file must not turn into a warning or another value."""
    raw = np.random.default_rng(3).integers(0, 256, (16, 16 * BLOCKS[dtype][1]), dtype=np.uint8)
    raw[0] = 0xFF
    mine = ours(dtype, raw)
    with np.errstate(all="ignore"):
        reference = gguf.quants.dequantize(raw, Type[dtype]).reshape(-1)
    np.testing.assert_array_equal(mine, reference)


def test_no_blocks_is_no_work() -> None:
    out = np.empty(0, np.float32)
    dequantise("Q6_K", np.empty((0, 210), np.uint8), out)
    assert out.size == 0


def test_type_table_equals_ggml() -> None:
    reference = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in Type if kind in gguf.GGML_QUANT_SIZES}
    assert TENSOR_TYPES.items() <= reference.items()
    assert {name: sizes for name, *sizes in TENSOR_TYPES.values() if name in BLOCKS} == {
        name: list(sizes) for name, sizes in BLOCKS.items()
    }


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    out = np.empty(values.shape, np.uint16)
    round_to_bf16(values, out)
    return out


def test_bf16_rounding_equals_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 400_000, dtype=np.uint32)
    bits[:65536] = (np.arange(65536, dtype=np.uint32) << 16) | 0x8000  # every tie
    bits[65536:131072] = (np.arange(65536, dtype=np.uint32) << 16) | 0x7FFF  # just below
    bits[131072:196608] = (np.arange(65536, dtype=np.uint32) << 16) | 0x8001  # just above
    values = bits.view(np.float32)
    mine = rounded(values)
    reference = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    nans = np.isnan(values)
    assert nans.any()
    np.testing.assert_array_equal(mine[~nans], reference[~nans])
    as_floats = (mine.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(as_floats), nans)  # the payload of a NaN is free, being one is not
    np.testing.assert_array_equal(np.signbit(as_floats), np.signbit(values))


def test_bf16_values_round_to_themselves() -> None:
    bits = np.arange(65536, dtype=np.uint32)
    values = (bits << 16).view(np.float32)
    keep = ~np.isnan(values)
    np.testing.assert_array_equal(rounded(values)[keep], bits[keep].astype(np.uint16))
