from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mutate_checkpoints
import numpy as np
import pytest
from checkpoint_builders import ARRAY, BOOL, STRING, array, entry, gguf_file, pack_safetensors, pair, tensor, text
from checkpoint_mutations import gguf_fields, make_bases

from deepseek_r1.core.errors import CheckpointError, DeepSeekError, ModelNotFoundError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors


def test_the_builders_of_these_cases_can_make_valid_files(tmp_path: Path) -> None:
    """The negative control of the two tables above: without the lie, the file loads."""
    values = np.arange(9, dtype=np.float32)
    data = values.tobytes() + b"\0" * 28 + np.ones(4, np.float32).tobytes()
    pairs = pair(b"k", ARRAY, array(STRING, 2, text(b"a") + text(b""))) + pair(b"b", BOOL, b"\1")
    whole = gguf_file(pairs, tensor(dims=(9,)), tensor(b"v", offset=64), tensors=2, keys=2, data=data)
    (tmp_path / "model.gguf").write_bytes(whole)
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.metadata == {"k": ["a", ""], "b": True}
        assert checkpoint.read("w").tolist() == values.tolist()
        assert checkpoint.read("v").tolist() == [1.0] * 4
    (tmp_path / "x.safetensors").write_bytes(pack_safetensors({"w": entry()}, values[:2].tobytes()))
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.read("w").tolist() == [0.0, 1.0]


def test_paths_that_are_no_checkpoint_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, problem in ((tmp_path / "pipe.gguf", "not a regular file"), (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(CheckpointError, match=problem):
            open_checkpoint(path)
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_checkpoint(tmp_path / "loop.gguf")
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    with pytest.raises(ModelNotFoundError):
        open_checkpoint(tmp_path / "gone.gguf")
    with pytest.raises(DeepSeekError):
        open_checkpoint("a\0b.gguf")
    with pytest.raises(DeepSeekError):
        open_checkpoint(tmp_path / "pipe.gguf" / "below.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_a_file_that_shrinks_while_open(tmp_path: Path, name: str) -> None:
    """Touching a mapped page behind the end would kill the process: SIGBUS."""
    path = tmp_path / name
    if name.endswith(".gguf"):
        path.write_bytes(gguf_file(tensor(dims=(1 << 20,)), tensors=1, data=b"\0" * (4 << 20)))
    else:
        write_safetensors(path, {"w": np.zeros(1 << 20, np.float32)})
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 1 << 20)
        for read in (checkpoint.read, checkpoint.read_bf16_bits):
            with pytest.raises(CheckpointError, match="tensor 'w': the file shrank to 1048576 bytes"):
                read("w")


def test_cut_headers_are_refused(tmp_path: Path) -> None:
    bases = {base.name: base for base, _ in make_bases(tmp_path)}
    for base, step in ((bases["gguf"], 5), (bases["safetensors"], 1)):
        data = base.files[base.target]
        path = tmp_path / base.target
        for length in range(0, base.header_end, step):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError):
                open_checkpoint(path)


def test_the_walker_finds_the_fields_of_a_known_file() -> None:
    fields = gguf_fields(gguf_file(pair(b"k", STRING, text(b"ab")), tensor(b"w", (4, 2)), tensors=1, keys=1))
    assert [(field.kind, field.offset, field.size) for field in fields] == [
        ("magic", 0, 4), ("version", 4, 4), ("count", 8, 8), ("count", 16, 8),
        ("length", 24, 8), ("name", 32, 1), ("type", 33, 4), ("length", 37, 8), ("text", 45, 2),
        ("length", 47, 8), ("name", 55, 1), ("rank", 56, 4), ("dimension", 60, 8), ("dimension", 68, 8),
        ("tensor type", 76, 4), ("offset", 80, 8),
    ]  # fmt: skip


def test_mutated_files_load_or_raise_typed_errors(tmp_path: Path) -> None:
    """200 of the cases that `make prove` runs 2,000 of; the report goes on where it stopped."""
    out = tmp_path / "proof.json"
    first = mutate_checkpoints.run(60, 1, out)
    assert first["done"] == 60
    report = mutate_checkpoints.run(200, 1, out)
    assert report["failures"] == []
    assert report["done"] == 200 and report["structural"] == report["random"] == 100
    assert report["loaded"] + report["typed_errors"] == 200
    assert report["loaded"] >= 20 and report["typed_errors"] >= 100
    assert len(report["by_field"]) >= 20
    assert report["max_seconds"] < 5 and report["peak_memory_mib"] < 1024
    assert json.loads(out.read_text()) == report


def test_the_worker_notices_crashes_hangs_and_untyped_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a reader that fails is reported as failing."""
    script = f"""
import sys, os, time
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import mutate_checkpoints
from deepseek_r1.models.checkpoint import open as door
def broken(path):
    if path.endswith("crash"): os.abort()
    if path.endswith("/hang"): time.sleep(60)
    if path.endswith("memory"): bytearray(2 << 30)
    raise IndexError("leaked")
door.open_checkpoint = broken
mutate_checkpoints.worker()
"""
    program = tmp_path / "broken.py"
    program.write_text(script)
    process = mutate_checkpoints.Worker()
    monkeypatch.setattr(mutate_checkpoints, "__file__", str(program))
    try:
        outcomes = {name: process.ask(tmp_path / name) for name in ("index", "memory", "crash", "restarted")}
        with monkeypatch.context() as patch:
            patch.setattr(mutate_checkpoints, "SECONDS", -4.0)
            outcomes["hang"] = process.ask(tmp_path / "hang")
        outcomes["after hang"] = process.ask(tmp_path / "after hang")
    finally:
        process.close(kill=True)
    assert [(name, answer["outcome"]) for name, answer in outcomes.items()] == [
        ("index", "untyped"), ("memory", "untyped"), ("crash", "crash"), ("restarted", "untyped"),
        ("hang", "hang"), ("after hang", "untyped"),
    ]  # fmt: skip
    assert outcomes["index"]["error"] == "IndexError" and outcomes["memory"]["error"] == "MemoryError"


def test_the_script_runs(tmp_path: Path) -> None:
    script = Path(__file__).with_name("mutate_checkpoints.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        str(script),
        "--count",
        "4",
        "--seed",
        "7",
        "--out",
        str(tmp_path / "deep" / "proof.json"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "deep" / "proof.json").read_text())
    assert report["done"] == 4 and report["seed"] == 7 and report["machine"]["cores"] == os.cpu_count()
