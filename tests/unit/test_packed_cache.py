"""Packed weights on disk: a second start maps the same bytes, and no file that lies there can do harm."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepseek_r1.cli.main import main
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.core.errors import CheckpointError, ConfigError
from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import Packed
from deepseek_r1.models import cache_files, packed_cache
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.packed_cache import load_packed
from support import tiny
from support.blob_weight import BlobStack, BlobWeight

HEAD = struct.Struct("<8sIIQ32s")
PRECISIONS = ("fp32", "bf16", "int8", "int4", "mixed:embedding=int8,lm_head=fp32")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(cache_files.LIMIT_VARIABLE, raising=False)
    return tmp_path / "cache/deepseek-r1/packed"


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights with bytes, whether or not this machine has kernels for them; tiny models are kept too."""
    monkeypatch.setattr(ops, "PackedWeight", BlobWeight)
    monkeypatch.setattr(ops, "PackedStack", BlobStack)
    monkeypatch.setattr(ops, "NATIVE", True)
    monkeypatch.setattr(packed_cache, "LEAST_BYTES", 0)


def bytes_of(decoder: nn.Module) -> dict[str, bytes]:
    """All that a decoder holds, by name."""
    found = {}
    for name, module in decoder.named_modules():
        if isinstance(getattr(module, "weight", None), ops.PackedWeight | ops.PackedStack):
            found[name] = module.weight.blob.numpy().tobytes() + repr(sorted(module.weight.spec.items())).encode()
            bias = getattr(module, "bias", None)
            if bias is not None:
                found[f"{name}.bias"] = bias.float().numpy().tobytes()
    for name, weight in decoder.named_parameters():
        found[name] = weight.detach().float().numpy().tobytes()
    return found


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a tensor of the checkpoint was read")


def only(folder: Path) -> Path:
    (file,) = folder.glob("*.packed")
    return file


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen2", "deepseek_v3", "qwen3_moe", "gemma3"])
def test_the_second_start_maps_what_the_first_packed(
    family: str, precision: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    path, mode = tiny.save(family, models_folder), parse_precision(precision)
    first = load_packed(path, mode)
    reference = bytes_of(load_decoder(path, mode, pack=True))
    assert bytes_of(first) == reference
    assert str(only(folder)) in Path("/proc/self/maps").read_text(), "the first start maps what it has written, too"
    assert only(folder).stat().st_mode & 0o077 == 0 and folder.stat().st_mode & 0o077 == 0
    made = BlobWeight.made
    for method in ("read", "read_into", "read_rows", "read_quantised", "read_bf16_bits", "read_bf16_bits_into"):
        monkeypatch.setattr(Checkpoint, method, never)
    second = load_packed(path, mode)
    assert isinstance(second, Decoder) and not second.training and BlobWeight.made == made
    assert bytes_of(second) == reference and len(reference) > 10
    assert not any(weight.requires_grad for weight in second.parameters())
    shared = first.config.tie_embeddings and precision in ("int8", "int4")
    assert (getattr(second.embedding, "weight", 0) is second.lm_head.weight) == shared


@pytest.mark.usefixtures("native")
def test_what_is_kept_is_told_apart(
    models_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By precision, path of the kernels, layout, prediction modules, and content: a renamed copy is the same model."""
    path, int8 = tiny.save("llama", models_folder), parse_precision("int8")
    load_packed(path, int8)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    load_packed(copy, int8)
    assert len(list(folder.glob("*.packed"))) == 1
    load_packed(path, parse_precision("int4"))
    load_packed(path, int8, mtp=True)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "PATH", "another")
        load_packed(path, int8)
        patch.setattr(ops, "LAYOUT_VERSION", 99)
        load_packed(path, int8)
    assert len(list(folder.glob("*.packed"))) == 5
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    load_packed(copy, int8)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    load_packed(copy, int8)
    assert len(list(folder.glob("*.packed"))) == 7


def damaged_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the header with a sound checksum: as somebody would who means harm."""
    data = file.read_bytes()
    magic, version, _, length, _ = HEAD.unpack(data[: HEAD.size])
    header = json.loads(data[HEAD.size : HEAD.size + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    body = bytearray(data)
    start = HEAD.pack(magic, version, 0, len(text), hashlib.sha256(text).digest()) + text
    body[: len(start)] = start
    file.write_bytes(body)


def set_in(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        place: Any = header
        for step in path[:-1]:
            place = place[step]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


NORM = "norm.weight"
HARM: dict[str, Callable[[Path], Any]] = {
    "empty": lambda f: f.write_bytes(b""),
    "three bytes": lambda f: f.write_bytes(b"R1P"),
    "another format": lambda f: f.write_bytes(b"\x80\x04" + f.read_bytes()[2:]),
    "an older version": lambda f: f.write_bytes(f.read_bytes()[:8] + b"\0" + f.read_bytes()[9:]),
    "header length": lambda f: f.write_bytes(f.read_bytes()[:16] + b"\xff" * 8 + f.read_bytes()[24:]),
    "one bit of the header": lambda f: f.write_bytes(f.read_bytes()[:200] + b"#" + f.read_bytes()[201:]),
    "cut in half": lambda f: os.truncate(f, f.stat().st_size // 2),
    "one page short": lambda f: os.truncate(f, f.stat().st_size - 4096),
    "longer": lambda f: os.truncate(f, f.stat().st_size + 4096),
    "pieces never written": lambda f: f.write_bytes(f.read_bytes()[:40960].ljust(f.stat().st_size, b"\0")),
    "writable by others": lambda f: f.chmod(0o666),
    "a list": lambda f: damaged_header(f, lambda h: [h]),
    "deep": lambda f: f.write_bytes(
        HEAD.pack(b"R1PACKED", 1, 0, 200_000, hashlib.sha256(b"[" * 200_000).digest()) + b"[" * 200_000
    ),
    "another key": lambda f: damaged_header(f, set_in("key", "digest", value="0" * 64)),
    "no key": lambda f: damaged_header(f, set_in("key", value=None)),
    "no pieces": lambda f: damaged_header(f, set_in("offsets", value=[])),
    "no begin": lambda f: damaged_header(f, set_in("begin", value=None)),
    "begin is text": lambda f: damaged_header(f, set_in("begin", value="0")),
    "offset past the end": lambda f: damaged_header(f, set_in("offsets", 0, value=1 << 50)),
    "offset negative": lambda f: damaged_header(f, set_in("offsets", 0, value=-4096)),
    "offset inside a page": lambda f: damaged_header(f, set_in("offsets", 0, value=4097)),
    "offset is text": lambda f: damaged_header(f, set_in("offsets", 0, value="4096")),
    "offset is true": lambda f: damaged_header(f, set_in("offsets", 0, value=True)),
    "bytes of a weight": lambda f: damaged_header(f, set_in("blobs", 0, "bytes", value=1 << 40)),
    "fewer bytes of a weight": lambda f: damaged_header(f, set_in("blobs", 0, "bytes", value=64)),
    "shape of a weight": lambda f: damaged_header(f, set_in("blobs", 0, "spec", "out", value=1 << 40)),
    "no spec": lambda f: damaged_header(f, set_in("blobs", 0, "spec", value=None)),
    "spec is text": lambda f: damaged_header(f, set_in("blobs", 0, "spec", value="os.system")),
    "module of no weight": lambda f: damaged_header(f, set_in("modules", "lm_head", value=999)),
    "a module that isn't there": lambda f: damaged_header(f, set_in("modules", "layers.99.o_proj", value=0)),
    "a module that is none": lambda f: damaged_header(f, set_in("modules", "rotaries.0", value=0)),
    "the decoder itself": lambda f: damaged_header(f, set_in("modules", "", value=0)),
    "a module is missing": lambda f: damaged_header(f, set_in("modules", "layers.0.attention.o_proj", value=None)),
    "weights in each other's place": lambda f: damaged_header(f, set_in("modules", "layers.0.mlp.gate_up", value=0)),
    "a tensor is missing": lambda f: damaged_header(f, set_in("tensors", NORM, value=None)),
    "a tensor that isn't there": lambda f: damaged_header(
        f, set_in("tensors", "__class__", value={"piece": 0, "dtype": "float32", "shape": [1]})
    ),
    "shape of a tensor": lambda f: damaged_header(f, set_in("tensors", NORM, "shape", value=[1 << 40])),
    "negative shape": lambda f: damaged_header(f, set_in("tensors", NORM, "shape", value=[-48])),
    "shape is text": lambda f: damaged_header(f, set_in("tensors", NORM, "shape", value="48")),
    "dtype of a tensor": lambda f: damaged_header(f, set_in("tensors", NORM, "dtype", value="object")),
    "tensors are a list": lambda f: damaged_header(f, set_in("tensors", value=[1])),
}


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", HARM)
def test_a_file_that_is_not_as_it_was_written_is_made_anew(
    name: str, models_folder: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, mode = tiny.save("llama-bias", models_folder), parse_precision("int8")
    reference = bytes_of(load_packed(path, mode))
    file = only(folder)
    whole = file.read_bytes()
    HARM[name](file)
    logging.getLogger("deepseek_r1").propagate = True
    with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        assert bytes_of(load_packed(path, mode)) == reference
    assert len(caplog.records) == 1 and "packing the weights" in caplog.text and "Traceback" not in caplog.text
    assert file.read_bytes() == whole, "written again, as it was"
    made = BlobWeight.made
    assert bytes_of(load_packed(path, mode)) == reference and BlobWeight.made == made


EXPERTS, HEADS, LINEAR = "layers.1.mlp.experts.up_proj", "layers.0.attention.k_up", "layers.0.attention.o_proj"
ROUTER = "layers.1.mlp.router"


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("module", "other"),
    [
        *((EXPERTS, HEADS), (EXPERTS, LINEAR), (HEADS, LINEAR), (LINEAR, EXPERTS), (ROUTER, EXPERTS), (ROUTER, LINEAR)),
        *((ROUTER, None), (HEADS, None), (EXPERTS, None), ("layers.1.mlp.experts", EXPERTS), ("layers.1.mlp", ROUTER)),
    ],
)
def test_stacks_and_routers_in_the_wrong_place_are_packed_anew(
    module: str, other: str | None, models_folder: Path, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    path, mode = tiny.save("deepseek_v3", models_folder), parse_precision("int4")
    reference = bytes_of(load_packed(path, mode))
    assert {EXPERTS, HEADS, LINEAR, ROUTER} <= set(reference)

    def exchange(header: dict[str, Any]) -> None:
        places = header["modules"]
        if other is None:
            del places[module]
        else:
            places[module] = places[other]

    damaged_header(only(folder), exchange)
    logging.getLogger("deepseek_r1").propagate = True
    with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        assert bytes_of(load_packed(path, mode)) == reference
    assert "makes no sense" in caplog.text


@pytest.mark.usefixtures("native")
def test_links_pipes_and_folders_in_its_place(models_folder: Path, folder: Path, tmp_path: Path) -> None:
    path, mode = tiny.save("llama", models_folder), parse_precision("int8")
    reference = bytes_of(load_packed(path, mode))
    file = only(folder)
    elsewhere = tmp_path / "elsewhere"
    for put in (
        lambda: file.symlink_to(elsewhere),
        lambda: os.mkfifo(file),
        lambda: file.mkdir(),
    ):
        file.rename(elsewhere)
        put()
        assert bytes_of(load_packed(path, mode)) == reference
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        elsewhere.rename(file)


@pytest.mark.usefixtures("native")
def test_a_disk_that_can_not_be_written_costs_one_line(
    models_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, mode = tiny.save("llama", models_folder), parse_precision("int8")
    reference = bytes_of(load_decoder(path, mode, pack=True))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    logging.getLogger("deepseek_r1").propagate = True
    with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        assert bytes_of(load_packed(path, mode)) == reference
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert [file.name for file in folder.iterdir()] == ["digests"], "nothing is left behind"


@pytest.mark.usefixtures("native")
def test_what_was_used_longest_ago_goes_first(
    models_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny.save("llama", models_folder)
    load_packed(path, parse_precision("fp32"))
    first = only(folder)
    os.utime(first, (1e9, 1e9))
    load_packed(path, parse_precision("int8"))
    (second,) = set(folder.glob("*.packed")) - {first}
    os.utime(second, (1e9 + 5, 1e9 + 5))
    load_packed(path, parse_precision("fp32"))  # used again: now the second is older
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, str(first.stat().st_size * 2 + 4096))
    load_packed(path, parse_precision("int4"))
    assert first.exists() and not second.exists() and len(list(folder.glob("*.packed"))) == 2
    stale, fresh = folder / ".x.packed.1.partial", folder / ".y.packed.2.partial"
    for partial in (stale, fresh):
        partial.write_bytes(b"x")
    os.utime(stale, (1e9, 1e9))
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "1KiB")
    logging.getLogger("deepseek_r1").propagate = True
    with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        load_packed(path, parse_precision("bf16"))
    assert "are more than 1024" in caplog.text and len(list(folder.glob("*.packed"))) == 2
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "1GiB")
    load_packed(path, parse_precision("bf16"))
    assert not stale.exists() and fresh.exists()
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "0")
    assert cache_files.clear()[0] == 3
    load_packed(path, parse_precision("bf16"))
    assert list(folder.glob("*.packed")) == []
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "much")
    with pytest.raises(ConfigError, match=cache_files.LIMIT_VARIABLE):
        load_packed(path, parse_precision("bf16"))


def test_torch_alone_and_tiny_models_keep_nothing(
    models_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save("llama", models_folder)
    load_packed(path, parse_precision("int8"))
    monkeypatch.setattr(packed_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(ops, "NATIVE", False)
    load_packed(path, parse_precision("int8"))
    assert not folder.exists()


@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3", "mixtral"])
def test_with_the_kernels_of_this_machine(
    family: str, models_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and logits are the same from the file; without native kernels there is no file."""
    monkeypatch.setattr(packed_cache, "LEAST_BYTES", 0)
    path = tiny.save(family, models_folder)
    for precision in ("fp32", "bf16", "int8", "int4"):
        first, second = (load_packed(path, parse_precision(precision)) for _ in range(2))
        ids, positions = torch.arange(30), torch.arange(30)
        with torch.no_grad():
            logits = [d.logits(d(ids, positions, Packed([30]))) for d in (first, second)]
        assert torch.equal(*logits) and float(logits[0].std()) > 0.5
        assert not ops.NATIVE or bytes_of(first) == bytes_of(second)
    assert len(list(folder.glob("*.packed"))) == (4 if ops.NATIVE else 0)


def test_digests_are_computed_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    want = hashlib.sha256(b"one").hexdigest()
    assert cache_files.file_digest(file) == want
    (memo,) = (folder / "digests").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", never)
        assert cache_files.file_digest(file) == want
    for junk in (b"", b"x" * 64, b"0" * 63, b"0" * 65, b"\xff" * 64):
        memo.write_bytes(junk)
        assert cache_files.file_digest(file) == want, junk
    # Another content of the same size, its time of change set back.
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache_files.file_digest(file) == hashlib.sha256(b"two").hexdigest()
    monkeypatch.setattr(cache_files, "MAX_DIGESTS", 1)
    file.write_bytes(b"three")
    cache_files.file_digest(file)
    assert len(list((folder / "digests").iterdir())) == 1


WRITER = """
import sys, numpy as np
from pathlib import Path
from deepseek_r1.models import cache_files
piece = np.full(3_000_000, int(sys.argv[2]), np.uint8)
for _ in range(5):
    cache_files.write(Path(sys.argv[1]), {"key": {}}, [piece, piece[:100]])
"""


def test_two_writers_leave_one_whole_file(folder: Path) -> None:
    path = folder / "same.packed"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)]) for number in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            file = cache_files.CacheFile(path)
        except FileNotFoundError:
            continue
        file.check_sample()
        values = set(file.piece(file.header["offsets"][0], 3_000_000).tolist())
        assert len(values) == 1
        seen |= values
    assert [writer.returncode for writer in writers] == [0, 0] and seen <= {1, 2} and seen
    assert [file.name for file in folder.iterdir()] == ["same.packed"]


def test_it_is_written_in_whole_huge_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is how the system comes to keep it on such pages; what stands in them are the pieces."""
    written: list[int] = []
    write_all = cache_files._write_all
    monkeypatch.setattr(cache_files, "_write_all", lambda to, data: (written.append(data.nbytes), write_all(to, data)))
    sizes = (1, 5_000_000, 0, 4096, (4 << 20) - 4096, 70_001)
    pieces = [np.random.default_rng(i).integers(0, 256, size, np.uint8) for i, size in enumerate(sizes)]
    cache_files.write(folder / "x.packed", {"key": {}}, pieces)
    file = cache_files.CacheFile(folder / "x.packed")
    file.check_sample()
    for offset, piece in zip(file.header["offsets"], pieces, strict=True):
        assert np.array_equal(file.piece(offset, piece.nbytes), piece)
    *whole, last, _ = written  # then the header, into the first
    assert len(whole) == 4 and set(whole) == {cache_files.BLOCK} and sum(whole) + last == file.size


def test_a_change_in_the_pieces_is_found_where_blocks_are_lost(folder: Path) -> None:
    """Every MiB is sampled: a hole of that size can't hide. The first and the last page are."""
    path = folder / "x.packed"
    cache_files.write(path, {"key": {}}, [np.full(5 << 20, 7, np.uint8)])
    whole = path.read_bytes()
    for start in (4096, 2 << 20, (4 << 20) + 5, len(whole) - 4096):
        hole = bytearray(whole)
        hole[start : start + (1 << 20)] = bytes(len(hole[start : start + (1 << 20)]))
        path.write_bytes(hole)
        with pytest.raises(CheckpointError, match="not what was written"):
            cache_files.CacheFile(path).check_sample()


@pytest.mark.usefixtures("native")
def test_the_verbs(models_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0.0 MB of at most ")
    path = tiny.save("llama", models_folder)
    load_packed(path, parse_precision("int8"))
    (folder / "broken.packed").write_bytes(b"\x1b[31mno")
    os.utime(folder / "broken.packed", (1e9, 1e9))
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == [str(path), "int8"] and lines[3].startswith("can't be read") and len(lines) == 5
    assert main(["cache", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["precision"] for entry in listed["files"]] == ["int8", None]
    total = sum(entry["nbytes"] for entry in listed["files"])
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": 2, "bytes": total}
    assert list(folder.rglob("*")) == [folder / "digests"]
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "Removed 0 files, 0.0 MB.\n"


def test_the_verbs_import_no_torch() -> None:
    code = "import sys; from deepseek_r1.cli.main import main; main(['cache', 'list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
