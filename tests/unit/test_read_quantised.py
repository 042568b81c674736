"""Blocks taken apart as they are, and rows read alone, against the gguf package and whole reads."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from test_gguf_quants import random_blocks

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.gguf_quants import BLOCKS, GROUPED
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors
from deepseek_r1.models.locate import locate_model


def written(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A GGUF file of raw blocks: (rows, bytes) of a type."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, raw) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rebuilt(checkpoint: Checkpoint, name: str) -> np.ndarray:
    found = checkpoint.read_quantised(name)
    assert found is not None
    codes, scales, minima, bits, group = found
    spread = np.repeat(scales, group, axis=1)
    with np.errstate(all="ignore"):
        if minima is None:
            return (codes.astype(np.float32) - np.float32(1 << (bits - 1))) * spread
        return codes.astype(np.float32) * spread + np.repeat(minima, group, axis=1)


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (5, 3), (700, 2)])
def test_blocks_are_taken_apart_without_loss(kind: str, rows: int, blocks: int, tmp_path: Path) -> None:
    raw = random_blocks(kind, rows, blocks, seed=rows)
    with open_checkpoint(written(tmp_path / "w.gguf", {"w": (kind, raw)})) as checkpoint:
        mine = rebuilt(checkpoint, "w")
        found = checkpoint.read_quantised("w")
        assert found is not None and (found.bits, found.minima is not None) == GROUPED[kind]
        np.testing.assert_array_equal(mine.view(np.uint32), checkpoint.read("w").view(np.uint32))
    np.testing.assert_array_equal(mine.view(np.uint32), gguf.quants.dequantize(raw, Type[kind]).view(np.uint32))


@pytest.mark.parametrize("kind", GROUPED)
def test_any_bytes_are_taken_apart(kind: str, tmp_path: Path) -> None:
    """Scales that are infinite or NaN come as they are, without a warning."""
    raw = np.random.default_rng(1).integers(0, 256, (8, 4 * BLOCKS[kind][1]), dtype=np.uint8)
    raw[0] = 0xFF
    with open_checkpoint(written(tmp_path / "w.gguf", {"w": (kind, raw)})) as checkpoint:
        np.testing.assert_array_equal(rebuilt(checkpoint, "w"), checkpoint.read("w"))


def test_other_types_have_no_groups(tmp_path: Path) -> None:
    tensors = {kind: (kind, random_blocks(kind, 2, 1, seed=0)) for kind in BLOCKS if kind not in GROUPED}
    with open_checkpoint(written(tmp_path / "w.gguf", tensors)) as checkpoint:
        assert [name for name in checkpoint.tensors if checkpoint.read_quantised(name) is not None] == []


def test_matrices_of_one_tensor_come_one_below_the_other(tmp_path: Path) -> None:
    raw = random_blocks("Q4_1", 6, 2, seed=0)
    tensors = {"cube": ("Q4_1", raw.reshape(3, 2, -1)), "flat": ("Q4_1", raw)}
    with open_checkpoint(written(tmp_path / "w.gguf", tensors)) as checkpoint:
        assert checkpoint.tensors["cube"].shape == (3, 2, 64)
        cube, flat = checkpoint.read_quantised("cube"), checkpoint.read_quantised("flat")
        assert cube is not None and flat is not None and cube.codes.shape == (6, 64)
        for got, want in zip(cube[:3], flat[:3], strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "w.gguf", {"w": ("Q4_0", random_blocks("Q4_0", 512, 8, seed=0))})
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="shrank"):
            checkpoint.read_quantised("w")
        with pytest.raises(CheckpointError, match="not in the checkpoint"):
            checkpoint.read_quantised("v")


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    raw = random_blocks(kind, 301, 2, seed=2)
    with open_checkpoint(written(tmp_path / "w.gguf", {"w": (kind, raw)})) as checkpoint:
        whole = checkpoint.read("w")
        for start, stop in ((0, 301), (0, 1), (300, 301), (17, 290), (5, 5)):
            rows = checkpoint.read_rows("w", start, stop)
            np.testing.assert_array_equal(rows.view(np.uint32), whole[start:stop].view(np.uint32))
        for start, stop in ((-1, 3), (4, 3), (0, 302)):
            with pytest.raises(ValueError, match="no rows"):
                checkpoint.read_rows("w", start, stop)


def test_rows_of_fp8_have_their_scales(tmp_path: Path) -> None:
    """Rows that begin and end inside a block of 128 x 128."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 520, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 5, generator=generator) + 0.5
    from safetensors.torch import save_file

    save_file({"w.weight": weight, "w.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with open_checkpoint(tmp_path) as checkpoint:
        want = weight.float() * scales.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :520]
        got = np.concatenate([checkpoint.read_rows("w.weight", *span) for span in ((0, 100), (100, 131), (131, 300))])
        assert np.array_equal(got, want.numpy())


def test_every_matrix_of_the_default_model_is_taken_apart_without_loss() -> None:
    counts: dict[str, int] = {}
    with open_checkpoint(locate_model("default")) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if len(info.shape) == 2:
                np.testing.assert_array_equal(rebuilt(checkpoint, name), checkpoint.read(name))
                counts[info.dtype] = counts.get(info.dtype, 0) + 1
    assert counts == {"Q4_1": 210, "Q8_0": 1}


def test_the_paths_of_a_checkpoint(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones((2, 2), np.float32)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.paths == (tmp_path / "model.safetensors",)
