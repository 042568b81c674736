from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight

from deepseek_r1.cli.main import main
from deepseek_r1.models.checkpoint.fp8 import E4M3_VALUES
from deepseek_r1.models.checkpoint.open import open_checkpoint

R1 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
FINITE = [code for code in range(256) if code & 0x7F != 0x7F]


def grid_of(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def random_codes(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """FP8 of every finite code, the denormals as often as the others."""
    codes = np.random.default_rng(seed).choice(np.array(FINITE, np.uint8), shape)
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def random_scales(grid: tuple[int, int], seed: int = 0, low: float = -20, high: float = 4) -> torch.Tensor:
    """Full mantissas, exponents between 2^low and 2^high."""
    return torch.from_numpy(np.exp2(np.random.default_rng(seed + 1).uniform(low, high, grid)).astype(np.float32))


def reference(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    rows, columns = (torch.arange(size) // side for size, side in zip(weight.shape, block, strict=True))
    return weight.float() * scales.float()[rows][:, columns]


def save(folder: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any] | None = R1) -> Path:
    config = {"model_type": "deepseek_v3"} | ({} if settings is None else {"quantization_config": settings})
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same_bits(folder: Path, name: str, expected: torch.Tensor) -> None:
    """All four ways of reading give `expected` (float32) bit for bit: -0.0 is not 0.0 here."""
    bits = expected.numpy().view(np.uint32)
    halves = expected.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors[name].dtype == "F8_E4M3"
        np.testing.assert_array_equal(checkpoint.read(name).view(np.uint32), bits)
        np.testing.assert_array_equal(checkpoint.read_bf16_bits(name), halves)
        wide, narrow = np.full(bits.shape, np.nan, np.float32), np.full(bits.shape, 0x7FC0, np.uint16)
        checkpoint.read_into(name, wide)
        checkpoint.read_bf16_bits_into(name, narrow)
        np.testing.assert_array_equal(wide.view(np.uint32), bits)
        np.testing.assert_array_equal(narrow, halves)


def test_every_code_has_the_value_torch_gives_it(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    mine, theirs = E4M3_VALUES, codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.flatnonzero(np.isnan(mine)).tolist() == np.flatnonzero(np.isnan(theirs)).tolist() == [0x7F, 0xFF]
    np.testing.assert_array_equal(mine[FINITE].view(np.uint32), theirs[FINITE].view(np.uint32))
    assert (mine[1], mine[7], mine[8], mine[0x7E]) == (2.0**-9, 7 * 2.0**-9, 2.0**-6, 448.0)
    weight = codes[FINITE].view(torch.float8_e4m3fn).reshape(2, 127)
    scales = torch.tensor([[0.1]])
    folder = save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": scales})
    assert_same_bits(folder, "x.weight", weight.float() * scales)


SHAPES = [
    (1, 1), (1, 128), (1, 129), (128, 1), (300, 1), (127, 129), (129, 127), (128, 128), (256, 384), (385, 257),
    (700, 300), (128, 512), (129, 512), (1, 65_536), (2, 65_537), (3, 140_001), (70_001, 1), (40, 7168),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_equal_torch_and_transformers(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight, scales = random_codes(shape), random_scales(grid_of(shape, (128, 128)))
    expected = reference(weight, scales, (128, 128))
    assert torch.equal(expected, _dequantize_fp8_weight(weight, scales, [128, 128], torch.float32))
    if scales.numel() > 1:
        assert not torch.equal(expected, reference(weight, scales.flip(0, 1), (128, 128)))
    assert_same_bits(save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": scales}), "x.weight", expected)


def test_whole_blocks_equal_what_transformers_loads(tmp_path: Path) -> None:
    weight, scales = random_codes((384, 640)), random_scales((3, 5))
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales, torch.float32)
    assert_same_bits(save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": scales}), "x.weight", expected)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 90), st.integers(0, 90)),
    block=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_block_and_scale_type(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    block: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    weight = random_codes(shape, seed)
    scales = random_scales(grid_of(shape, block), seed, low=-14).to(dtype)
    tensors = {"x.weight": weight, "x.weight_scale_inv": scales}
    folder = save(tmp_path_factory.mktemp("fp8"), tensors, R1 | {"weight_block_size": list(block)})
    assert_same_bits(folder, "x.weight", reference(weight, scales, block))


@pytest.mark.parametrize("block", [(1, 1), (1, 48), (2, 1000), (128, 1), (7, 65_536), (65_536, 65_535)], ids=str)
@pytest.mark.parametrize("shape", [(3, 131_073), (500, 400)], ids=str)
def test_blocks_that_do_not_divide_a_chunk(tmp_path: Path, shape: tuple[int, int], block: tuple[int, int]) -> None:
    weight, scales = random_codes(shape), random_scales(grid_of(shape, block))
    tensors = {"x.weight": weight, "x.weight_scale_inv": scales}
    folder = save(tmp_path, tensors, R1 | {"weight_block_size": list(block)})
    assert_same_bits(folder, "x.weight", reference(weight, scales, block))


@pytest.mark.parametrize(("low", "high"), [(-149, -120), (-126, -100), (80, 118)])
def test_scales_of_any_exponent(tmp_path: Path, low: float, high: float) -> None:
    """Denormal scales and products, and products just below the largest float32."""
    weight, scales = random_codes((200, 300)), random_scales((2, 3), low=low, high=high).clamp(min=2.0**-149)
    expected = reference(weight, scales, (128, 128))
    assert expected.isfinite().all()
    assert_same_bits(save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": scales}), "x.weight", expected)


@pytest.mark.parametrize("settings", [None, {"quant_method": "fp8"}, R1 | {"fmt": "float8_e4m3fn"}])
def test_blocks_are_128x128_unless_the_config_says_otherwise(tmp_path: Path, settings: dict[str, Any] | None) -> None:
    weight, scales = random_codes((257, 130)), random_scales((3, 2))
    folder = save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": scales}, settings)
    assert_same_bits(folder, "x.weight", reference(weight, scales, (128, 128)))


@pytest.mark.parametrize("shape", [(3, 50), (130, 70_000), (0, 3), (3, 0)], ids=str)
def test_fp8_without_scales_is_cast_where_the_config_names_none(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight = random_codes(shape)
    assert_same_bits(save(tmp_path, {"x.weight": weight}, None), "x.weight", weight.float())
    (tmp_path / "config.json").unlink()
    assert_same_bits(tmp_path, "x.weight", weight.float())


def test_weight_and_scales_in_different_shards(tmp_path: Path) -> None:
    weights = {name: random_codes((200, 140), seed) for seed, name in enumerate(("a.weight", "b.weight"))}
    scales = {f"{name}_scale_inv": random_scales((2, 2), seed) for seed, name in enumerate(weights)}
    plain = torch.randn(5, 3)
    shards = {
        "1.safetensors": {"a.weight": weights["a.weight"], "b.weight_scale_inv": scales["b.weight_scale_inv"]},
        "2.safetensors": {"b.weight": weights["b.weight"], "a.weight_scale_inv": scales["a.weight_scale_inv"]},
        "3.safetensors": {"norm.weight": plain},
    }
    for shard, tensors in shards.items():
        safetensors.torch.save_file(tensors, tmp_path / shard)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": R1}))
    for name, weight in weights.items():
        assert_same_bits(tmp_path, name, reference(weight, scales[f"{name}_scale_inv"], (128, 128)))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == weight_map.keys()
        np.testing.assert_array_equal(checkpoint.read("norm.weight"), plain.numpy())
        np.testing.assert_array_equal(checkpoint.read("a.weight_scale_inv"), scales["a.weight_scale_inv"].numpy())


def test_bfloat16_ties_go_to_even(tmp_path: Path) -> None:
    """1 + 2^-8 and 1 + 3 * 2^-8 lie halfway between two bfloat16 each."""
    weight = torch.ones(2, 1).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1 + 2.0**-8], [1 + 3 * 2.0**-8]])
    tensors = {"x.weight": weight, "x.weight_scale_inv": scales}
    with open_checkpoint(save(tmp_path, tensors, R1 | {"weight_block_size": [1, 1]})) as checkpoint:
        assert checkpoint.read_bf16_bits("x.weight").tolist() == [[0x3F80], [0x3F82]]


def test_reading_fp8_holds_no_whole_temporary_and_gives_file_pages_back(tmp_path: Path) -> None:
    shape = (4096, 16_384)
    weight = torch.full(shape, 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
    save(tmp_path, {"x.weight": weight, "x.weight_scale_inv": torch.ones(32, 128)})
    script = f"""
from pathlib import Path
from deepseek_r1.models.checkpoint.open import open_checkpoint

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10

checkpoint = open_checkpoint({str(tmp_path)!r})
checkpoint.read("x.weight_scale_inv")
Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which begins as high as the parent's
before = status("VmRSS:")
bits = checkpoint.read_bf16_bits("x.weight")
print(status("VmHWM:") - before, bits.nbytes / 2**20, (bits == 0x3F80).all())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, result, right = done.stdout.split()
    assert (float(result), right) == (128.0, "True")
    assert float(grown) < 128 + 32, "the result, at most 16 MiB of file pages and chunks; neither the file nor float32"


def test_models_inspect_counts_fp8_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(
        tmp_path,
        {
            "a.weight": random_codes((200, 300)),
            "a.weight_scale_inv": random_scales((2, 3)),
            "norm.weight": torch.ones(300, dtype=torch.bfloat16),
        },
        R1,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "not built", "quantization_config": R1}))
    assert main(["models", "inspect", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensors"] == {
        "F8_E4M3": {"tensors": 1, "parameters": 60_000, "bytes": 60_000},
        "BF16": {"tensors": 1, "parameters": 300, "bytes": 600},
        "F32": {"tensors": 1, "parameters": 0, "bytes": 24},  # scales belong to the storage, not to the model
    }
