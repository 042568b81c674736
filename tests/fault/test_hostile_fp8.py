from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from checkpoint_builders import entry, pack_safetensors
from checkpoint_mutations import Base, mutate

from deepseek_r1.core.errors import CheckpointError, DeepSeekError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint

R1 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
ROWS, COLUMNS = 130, 257
GRID = (2, 3)
WEIGHT, SCALES = "x.weight", "x.weight_scale_inv"


def write(
    folder: Path,
    *,
    codes: Any = None,
    shape: Any = (ROWS, COLUMNS),
    scales: Any = None,
    scale_shape: Any = None,
    scale_dtype: str = "F32",
    settings: Any = R1,
) -> Path:
    """A checkpoint of one FP8 weight and its scales ("none" leaves them out)."""
    codes = bytes(np.full(int(np.prod(shape)), 0x38, np.uint8) if codes is None else codes)
    header = {WEIGHT: entry("F8_E4M3", list(shape), [0, len(codes)])}
    data = codes
    if not isinstance(scales, str):
        array = np.ones(GRID, np.float32) if scales is None else np.asarray(scales)
        data += array.tobytes()
        dims = list(array.shape if scale_shape is None else scale_shape)
        header[SCALES] = entry(scale_dtype, dims, [len(codes), len(data)])
    (folder / "model.safetensors").write_bytes(pack_safetensors(header, data))
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return folder


def refused(folder: Path, error: type[DeepSeekError] = CheckpointError) -> Any:
    """Opening and listing work, and every way of reading the weight raises `error`."""
    caught = []
    with open_checkpoint(folder) as checkpoint:
        assert WEIGHT in checkpoint.tensors
        for read in (checkpoint.read, checkpoint.read_bf16_bits):
            with pytest.raises(error) as raised:
                read(WEIGHT)
            caught.append(raised.value)
    assert caught[0].message == caught[1].message and caught[0].remedy
    return caught[0]


def test_without_the_lie_the_checkpoint_reads(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read(WEIGHT), np.ones((ROWS, COLUMNS), np.float32))


@pytest.mark.parametrize(
    ("settings", "field", "problem"),
    [
        (7, "quantization_config", "not an object"),
        ([], "quantization_config", "not an object"),
        ("fp8", "quantization_config", "not an object"),
        ({}, "quantization_config.quant_method", "missing"),
        (R1 | {"quant_method": None}, "quantization_config.quant_method", "no string"),
        (R1 | {"quant_method": ["fp8"]}, "quantization_config.quant_method", "no string"),
        (R1 | {"fmt": 8}, "quantization_config.fmt", "no string"),
        *(
            (R1 | {"weight_block_size": sizes}, "quantization_config.weight_block_size", problem)
            for sizes, problem in (
                (128, "list of two"), ("128", "list of two"), ("128x128", "list of two"), ([], "list of two"),
                ([128], "list of two"), ([128, 128, 128], "list of two"), (["128", "128"], "list of two"),
                ([128.0, 128.0], "list of two"), ([True, True], "list of two"), ([None, 128], "list of two"),
                ([[128], [128]], "list of two"), ({"0": 128, "1": 128}, "list of two"), (float("nan"), "list of two"),
                ([0, 128], "between 1 and"), ([128, 0], "between 1 and"), ([-128, 128], "between 1 and"),
                ([128, -1], "between 1 and"), ([2**16 + 1, 128], "between 1 and"), ([128, 2**63], "between 1 and"),
                ([10**400, 10**400], "between 1 and"),
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_config_that_makes_no_sense(tmp_path: Path, settings: Any, field: str, problem: str) -> None:
    error = refused(write(tmp_path, settings=settings))
    assert error.path == str(tmp_path / "config.json")
    assert error.field == field
    assert problem in error.problem


@pytest.mark.parametrize(
    ("settings", "said", "supported"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method: 'gptq'", "'fp8'"),
        ({"quant_method": "compressed-tensors"}, "quant_method: 'compressed-tensors'", "'fp8'"),
        ({"quant_method": "FP8\n" * 99}, "quant_method: 'FP8\\nFP8", "'fp8'"),
        (R1 | {"fmt": "e5m2"}, "fmt: 'e5m2'", "'e4m3'"),
    ],
)
def test_other_methods_are_named_and_refused(tmp_path: Path, settings: Any, said: str, supported: str) -> None:
    error = refused(write(tmp_path, settings=settings), UnsupportedError)
    assert error.message.startswith(str(tmp_path / "config.json")) and said in error.message
    assert supported in error.remedy and "\n" not in str(error)


ONES = np.ones(GRID, np.float32)


def one_scale(value: float, row: int = 1, column: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    scales = ONES.copy()
    scales[row, column] = value
    return scales


@pytest.mark.parametrize(
    ("arguments", "field", "problem"),
    [
        ({"scales": "none"}, "", "is missing, and config.json says that tensor 'x.weight' is scaled by it"),
        ({"scales": ONES.T}, " shape", "(3, 2) is not (2, 3), one scale for each 128x128 block of (130, 257)"),
        ({"scales": ONES[:1]}, " shape", "(1, 3) is not (2, 3)"),
        ({"scales": np.ones((2, 4), np.float32)}, " shape", "(2, 4) is not (2, 3)"),
        ({"scales": ONES, "scale_shape": (6,)}, " shape", "(6,) is not"),
        ({"scales": ONES, "scale_shape": (1, 2, 3)}, " shape", "(1, 2, 3) is not"),
        ({"scales": np.float32(1)}, " shape", "() is not"),
        ({"scales": np.ones((0, 3), np.float32)}, " shape", "(0, 3) is not"),
        ({"settings": R1 | {"weight_block_size": [64, 128]}}, " shape", "(2, 3) is not (3, 3)"),
        ({"settings": R1 | {"weight_block_size": [2**16, 2**16]}}, " shape", "(2, 3) is not (1, 1)"),
        ({"settings": None, "scales": ONES.T}, " shape", "(3, 2) is not (2, 3)"),
        *(
            ({"scales": np.ones(GRID, stored), "scale_dtype": dtype}, " dtype", f"{dtype} is none of F32, BF16, F16")
            for dtype, stored in (
                ("F64", np.float64), ("I32", np.int32), ("U8", np.uint8), ("BOOL", np.uint8), ("F8_E8M0", np.uint8),
                ("F8_E4M3", np.uint8),
            )
        ),
        ({"scales": one_scale(np.nan)}, "", "the scale of block (1, 2) is nan"),
        ({"scales": one_scale(np.inf)}, "", "the scale of block (1, 2) is inf"),
        ({"scales": one_scale(-np.inf, 0, 0)}, "", "the scale of block (0, 0) is -inf"),
        ({"scales": one_scale(0.0, 0, 1)}, "", "the scale of block (0, 1) is 0.0"),
        ({"scales": one_scale(-0.0, 1, 0)}, "", "the scale of block (1, 0) is -0.0"),
        ({"scales": one_scale(-1.5, 0, 2)}, "", "the scale of block (0, 2) is -1.5"),
        ({"scales": np.full(GRID, 0xFF80, np.uint16), "scale_dtype": "BF16"}, "", "the scale of block (0, 0) is -inf"),
        ({"scales": np.full(GRID, 0x7E00, np.uint16), "scale_dtype": "F16"}, "", "the scale of block (0, 0) is nan"),
    ],
)  # fmt: skip
def test_scales_that_lie(tmp_path: Path, arguments: dict[str, Any], field: str, problem: str) -> None:
    error = refused(write(tmp_path, **arguments))
    assert error.path == str(tmp_path / "model.safetensors")
    assert error.field == f"tensor '{SCALES}'{field}"
    assert problem in error.problem


@pytest.mark.parametrize("settings", [R1, None])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4), (1, 1, 2, 3)], ids=str)
def test_fp8_that_is_no_matrix(tmp_path: Path, shape: tuple[int, ...], settings: Any) -> None:
    error = refused(write(tmp_path, shape=shape, settings=settings))
    assert error.field == f"tensor '{WEIGHT}' shape"
    assert f"{shape} is no matrix" in error.problem


@pytest.mark.parametrize("settings", [R1, None])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize(
    ("shape", "where"), [((ROWS, COLUMNS), (129, 256)), ((700, 300), (650, 7)), ((2, 140_001), (1, 131_072))], ids=str
)
def test_nan_codes(tmp_path: Path, settings: Any, code: int, shape: tuple[int, int], where: tuple[int, int]) -> None:
    codes = np.full(shape, 0x7E, np.uint8)
    codes[where] = code
    scales = "none" if settings is None else np.ones((-(-shape[0] // 128), -(-shape[1] // 128)), np.float32)
    error = refused(write(tmp_path, codes=codes.tobytes(), shape=shape, scales=scales, settings=settings))
    assert error.field == f"tensor '{WEIGHT}'"
    assert error.problem == f"the value at row {where[0]}, column {where[1]} is NaN"


def test_products_that_overflow(tmp_path: Path) -> None:
    """Only a block whose codes go beyond with their scale is refused, at the place of the first such value."""
    codes = np.full((ROWS, COLUMNS), 0x38, np.uint8)  # 1.0
    scales = one_scale(2.0**127)
    with open_checkpoint(write(tmp_path, codes=codes.tobytes(), scales=scales)) as checkpoint:
        assert checkpoint.read(WEIGHT)[-1, -1] == 2.0**127
    for code in (0x40, 0xC0, 0xFE):  # 2, -2, -448
        codes[129, 256] = code
        error = refused(write(tmp_path, codes=codes.tobytes(), scales=scales))
        assert error.field == f"tensor '{WEIGHT}'"
        assert "row 129, column 256 times its scale is beyond 3.4e+38" in error.problem


def test_products_that_only_bfloat16_cannot_hold(tmp_path: Path) -> None:
    for bits in (0x7F7FFFFF, 0x7F7F8000):  # the largest float32, and the first that rounds to infinity
        beyond = np.array(bits, np.uint32).view(np.float32)
        with open_checkpoint(write(tmp_path, scales=one_scale(beyond))) as checkpoint:
            assert checkpoint.read(WEIGHT)[-1, -1] == beyond
            with pytest.raises(CheckpointError, match=r"row 128, column 256 times its scale is beyond 3\.4e"):
                checkpoint.read_bf16_bits(WEIGHT)
    below = np.array(0x7F7F7FFF, np.uint32).view(np.float32)  # rounds down to the largest bfloat16
    with open_checkpoint(write(tmp_path, scales=one_scale(below))) as checkpoint:
        assert checkpoint.read_bf16_bits(WEIGHT)[-1, -1] == 0x7F7F


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [
        ([8, 12], "in 8 bytes of data"),
        ([2**40, 2**40 + 4], "in 8 bytes of data"),
        ([-4, 0], "not a pair"),
        ([4, 6], "do not hold F32"),
        ([0, 4], "overlaps"),
    ],
)
def test_scales_outside_the_file(tmp_path: Path, offsets: list[int], problem: str) -> None:
    header = {WEIGHT: entry("F8_E4M3", [2, 2], [0, 4]), SCALES: entry("F32", [1, 1], offsets)}
    (tmp_path / "model.safetensors").write_bytes(pack_safetensors(header, b"\x38" * 8))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.field == f"tensor '{SCALES}' data_offsets" and problem in caught.value.problem


def test_scales_that_the_index_does_not_name(tmp_path: Path) -> None:
    """The shard holds them, the checkpoint does not."""
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WEIGHT: "one.safetensors"}}))
    assert refused(tmp_path).field == f"tensor '{SCALES}'"


@pytest.mark.parametrize("left", [1 << 20, 100])
def test_fp8_file_that_shrinks_while_open(tmp_path: Path, left: int) -> None:
    path = write(tmp_path, shape=(1024, 2048), scales=np.ones((8, 16), np.float32)) / "model.safetensors"
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, left)
        with pytest.raises(CheckpointError, match=f"tensor '{SCALES}': the file shrank to {left} bytes"):
            checkpoint.read(WEIGHT)


def expected_values(path: Path, name: str, block: tuple[int, int]) -> Any:
    """What the reference reader and torch make of a weight and its scales, if there are any."""
    with safetensors.safe_open(path, "pt") as opened:
        weight = opened.get_tensor(name).float()
        if f"{name}_scale_inv" in opened.keys():
            rows, columns = (np.arange(size) // side for size, side in zip(weight.shape, block, strict=True))
            weight = weight * opened.get_tensor(f"{name}_scale_inv").float()[rows][:, columns]
    return weight.numpy()


def broken(base: Base, draw: random.Random, case: int) -> bytes:
    """Every fourth case breaks only the codes and scales: such a file opens."""
    if case % 4 or base.header_end == len(base.files[base.target]):
        return mutate(base, draw, structural=case % 2 == 0)
    data = bytearray(base.files[base.target])
    data[draw.randrange(base.header_end, len(data))] = draw.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("target", ["model.safetensors", "config.json"])
def test_broken_fp8_checkpoints_read_exactly_or_raise(tmp_path: Path, target: str) -> None:
    rng = np.random.default_rng(5)
    codes = rng.choice(np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8), (40, 30))
    scales = rng.uniform(0.5, 2, (3, 2)).astype(np.float32)
    write(tmp_path, codes=codes.tobytes(), shape=(40, 30), scales=scales, settings=R1 | {"weight_block_size": [16, 16]})
    files = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")}
    base = Base("fp8", files, target, "")
    outcomes = {"read": 0, "refused": 0}
    for case in range(400):
        (tmp_path / target).write_bytes(broken(base, random.Random(case), case))
        try:
            with open_checkpoint(tmp_path) as checkpoint:
                settings = checkpoint.metadata.get("quantization_config") or {}
                block = settings.get("weight_block_size") or (128, 128) if isinstance(settings, dict) else (128, 128)
                for name, info in checkpoint.tensors.items():
                    values = checkpoint.read(name)
                    if info.dtype == "F8_E4M3":
                        expected = expected_values(tmp_path / "model.safetensors", name, block)
                        np.testing.assert_array_equal(values, expected, strict=True)
                        assert np.isfinite(values).all()
                        outcomes["read"] += 1
        except (CheckpointError, UnsupportedError) as error:
            assert str(tmp_path) in error.message and error.remedy
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 40, outcomes


@pytest.mark.parametrize("beside", ["x.weight_scale", "x.scale", "x.weight_inv_scale", "x.scale_weight"])
def test_scales_of_another_layout_are_refused_not_forgotten(tmp_path: Path, beside: str) -> None:
    """One scale per tensor or channel, as other programs store it: without it the weights would be wrong by it."""
    codes = bytes(np.full(16, 0x38, np.uint8))
    header = {WEIGHT: entry("F8_E4M3", [4, 4], [0, 16]), beside: entry("F32", [1], [16, 20])}
    (tmp_path / "model.safetensors").write_bytes(pack_safetensors(header, codes + np.float32(0.1).tobytes()))
    (tmp_path / "config.json").write_text("{}")
    error = refused(tmp_path, UnsupportedError)
    assert beside in error.message and "BF16" in error.remedy


def test_compressed_tensors_older_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path, scales="none", settings=None)
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": {"format": "float-quantized"}}))
    assert "compression_config" in refused(tmp_path, UnsupportedError).message
