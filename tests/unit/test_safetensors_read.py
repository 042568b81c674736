from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepseek_r1.core.errors import CapacityError, UnsupportedError
from deepseek_r1.models.checkpoint import base
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors


def bf16_bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return tensor.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def sample_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(31, 70_000 // 31, generator=generator)  # more than one chunk
    return {
        f"{seed}.f32": values,
        f"{seed}.f16": (values * 3).to(torch.float16),
        f"{seed}.bf16": (values / 3).to(torch.bfloat16),
        f"{seed}.scalar": torch.tensor(1.5),
        f"{seed}.empty": torch.empty(0, 4),
        f"{seed}.empty_bf16": torch.empty(3, 0, dtype=torch.bfloat16),
    }


def assert_reads_as(checkpoint: base.Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        mine = checkpoint.read(name)
        assert mine.shape == tuple(tensor.shape) == checkpoint.tensors[name].shape
        np.testing.assert_array_equal(mine, tensor.float().numpy())
        np.testing.assert_array_equal(checkpoint.read_bf16_bits(name), bf16_bits(tensor))


def test_safetensors_file_written_by_the_reference(tmp_path: Path) -> None:
    tensors = sample_tensors(1)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8, "limit": float("inf")}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.format == "safetensors"
            assert checkpoint.path == path or checkpoint.path.parent == path
            assert checkpoint.metadata == {"model_type": "llama", "hidden_size": 8, "limit": float("inf")}
            assert checkpoint.tensors.keys() == tensors.keys()
            assert checkpoint.tensors["1.bf16"] == base.TensorInfo("1.bf16", (31, 2258), "BF16", 31 * 2258 * 2)
            assert_reads_as(checkpoint, tensors)


def test_stored_bf16_is_a_view_of_the_file(tmp_path: Path) -> None:
    safetensors.torch.save_file(sample_tensors(1), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    bits = checkpoint.read_bf16_bits("1.bf16")
    assert not bits.flags.owndata and not bits.flags.writeable
    checkpoint.close()
    np.testing.assert_array_equal(bits, bf16_bits(sample_tensors(1)["1.bf16"]))  # alive after close


def test_bf16_at_an_odd_offset_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    header = {
        "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "BF16", "shape": [2], "data_offsets": [1, 5]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x01" + np.array([0x3F80, 0xC000], "<u2").tobytes())
    with open_checkpoint(path) as checkpoint:
        bits = checkpoint.read_bf16_bits("w")
        assert bits.flags.aligned and bits.tolist() == [0x3F80, 0xC000]
        assert checkpoint.read("w").tolist() == [1.0, -2.0]
        with pytest.raises(UnsupportedError, match=r"tensor 'flag' is stored as BOOL.*F32, F16, BF16"):
            checkpoint.read("flag")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float8_e5m2])
def test_types_that_are_listed_but_not_read(tmp_path: Path, dtype: torch.dtype) -> None:
    safetensors.torch.save_file({"x": torch.ones(4).to(dtype)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["x"].shape == (4,)
        with pytest.raises(UnsupportedError, match="use a file stored as one of F32, F16, BF16"):
            checkpoint.read("x")


def test_sharded_safetensors_through_links_as_hub_caches_have_them(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    weight_map = {}
    for part in (1, 2):
        shard = f"model-0000{part}-of-00002.safetensors"
        safetensors.torch.save_file(sample_tensors(part), blobs / f"digest{part}")
        (snapshot / shard).symlink_to(Path("..") / "blobs" / f"digest{part}")
        weight_map |= dict.fromkeys(sample_tensors(part), shard)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (snapshot, snapshot / "model.safetensors.index.json"):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.tensors) == 12
            assert_reads_as(checkpoint, sample_tensors(1) | sample_tensors(2))
    with open_checkpoint(blobs / "digest1") as checkpoint:  # a file known by its content
        assert_reads_as(checkpoint, sample_tensors(1))


names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
arrays = st.sampled_from([np.float32, np.float16, np.uint16]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(names, arrays, max_size=5),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_written_safetensors_read_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    """Both readers, ours and the reference, give back what was written."""
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    bf16_names = {name for name, array in tensors.items() if array.dtype == np.uint16}
    write_safetensors(path, tensors, bf16_names=bf16_names, metadata=metadata)
    reference = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        assert (opened.metadata() or {}) == (metadata or {})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys() == reference.keys()
        for name, array in tensors.items():
            if name in bf16_names:
                np.testing.assert_array_equal(checkpoint.read_bf16_bits(name), array)
                np.testing.assert_array_equal(checkpoint.read(name), reference[name].float().numpy())
                np.testing.assert_array_equal(reference[name].view(torch.int16).numpy().view(np.uint16), array)
            else:
                np.testing.assert_array_equal(checkpoint.read(name), array.astype(np.float32))
                np.testing.assert_array_equal(reference[name].numpy(), array)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.ones(3, np.float32)})
    whole = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CapacityError, match="disk is full"):
        write_safetensors(path, {"w": np.zeros(3, np.float32)})
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_float_arrays_are_written(tmp_path: Path) -> None:
    for tensors, bf16_names in (
        ({"w": np.ones(3)}, ()),
        ({"w": np.ones(3, np.uint16)}, ()),
        ({"w": np.ones(3, np.float32)}, ("w",)),
        ({"__metadata__": np.ones(3, np.float32)}, ()),
    ):
        with pytest.raises(ValueError, match=r"w'|__metadata__"):
            write_safetensors(tmp_path / "x.safetensors", tensors, bf16_names=bf16_names)
    assert list(tmp_path.iterdir()) == []
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_safetensors(tmp_path / "x.safetensors", {"w": strided})
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["w"], strided)
