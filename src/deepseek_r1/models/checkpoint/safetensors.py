"""safetensors: one file, or shards with an index; read over mapped files, written atomically.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt

from deepseek_r1.core.errors import CapacityError, CheckpointError, ModelNotFoundError
from deepseek_r1.models.checkpoint.base import MAX_ELEMENTS, MAX_TENSORS, Checkpoint, Stored, TensorInfo
from deepseek_r1.models.checkpoint.mapped import MappedFile, quoted
from deepseek_r1.models.checkpoint.strict_json import parse_object

INDEX_NAME = "model.safetensors.index.json"

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's bound
MAX_CONFIG_BYTES = 16 << 20
MAX_SHARDS = 4096
MAX_RANK = 32

# dtype -> bits per element. All can be listed, base.READABLE can be read.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

_WRITTEN = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


def open_safetensors(path: Path) -> Checkpoint:
    """Open one *.safetensors file, with the config.json beside it as metadata.

    Raises `ModelNotFoundError` or `CheckpointError`.
    """
    file = MappedFile(path)
    try:
        return Checkpoint(path, "safetensors", read_config(path.parent), _directory(file), (file,))
    except BaseException:
        file.close()
        raise


def open_sharded(index: Path) -> Checkpoint:
    """Open the shards that an index file (model.safetensors.index.json) names, all beside it.

    Raises `CheckpointError` for a shard that is missing or lacks a tensor that the index promises.
    """
    weight_map = _weight_map(index)
    files: dict[str, MappedFile] = {}
    stored: dict[str, Stored] = {}
    try:
        shards: dict[str, dict[str, Stored]] = {}
        for shard in sorted(set(weight_map.values())):
            files[shard] = _open_shard(index, shard)
            shards[shard] = _directory(files[shard])
        for name, shard in weight_map.items():
            if name not in shards[shard]:
                raise files[shard].error(f"tensor {quoted(name)}", f"{index.name} promises it here, the file lacks it")
            stored[name] = shards[shard][name]
        return Checkpoint(index.parent, "safetensors", read_config(index.parent), stored, tuple(files.values()))
    except BaseException:
        for file in files.values():
            file.close()
        raise


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model directory, {} if there is none. Raises `CheckpointError` unless it is an object."""
    try:
        file = MappedFile(directory / "config.json")
    except ModelNotFoundError:
        return {}
    return _read_json(file, MAX_CONFIG_BYTES, strict=False)


def _read_json(file: MappedFile, limit: int, *, strict: bool) -> dict[str, Any]:
    """The whole of `file` as a JSON object; closes the file."""
    try:
        if file.size > limit:
            raise file.error("size", f"is {file.size} bytes, at most {limit} are allowed")
        return parse_object(file, 0, file.size, "content", strict=strict)
    finally:
        file.close()


def _weight_map(index: Path) -> dict[str, str]:
    file = MappedFile(index)
    weight_map = _read_json(file, MAX_HEADER_BYTES, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise file.error("weight_map", "is missing, empty or no object")
    if len(weight_map) > MAX_TENSORS:
        raise file.error("weight_map", f"names {len(weight_map)} tensors, at most {MAX_TENSORS} are allowed")
    for name, shard in weight_map.items():
        field = f"weight_map {quoted(name)}"
        if not isinstance(shard, str):
            raise file.error(field, "is no file name")
        # Links are followed (the hub's cache is made of them), names that leave the directory are not.
        plain = shard.isprintable() and "/" not in shard and "\\" not in shard and len(shard) <= 255
        if not plain or not shard.endswith(".safetensors"):
            raise file.error(field, f"{quoted(shard)} is not a plain *.safetensors file name")
    shards = len(set(weight_map.values()))
    if shards > MAX_SHARDS:
        raise file.error("weight_map", f"names {shards} files, at most {MAX_SHARDS} are allowed")
    return weight_map


def _open_shard(index: Path, shard: str) -> MappedFile:
    try:
        return MappedFile(index.parent / shard)
    except ModelNotFoundError as error:
        raise CheckpointError(
            index, f"file {shard!r}", "is named by the index but missing", remedy="fetch the missing file"
        ) from error


def _directory(file: MappedFile) -> dict[str, Stored]:
    """All tensors of one file, checked to tile its data exactly: no overlap, no hole, nothing left."""
    if file.size < 8:
        raise file.error("header length", f"the file has only {file.size} bytes")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise file.error("header length", f"claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    start = 8 + length
    if start > file.size:
        raise file.error("header length", f"claims {length} bytes, the file has {file.size - 8} after it")
    if file.bytes(8, 9) != b"{":
        raise file.error("header", "does not begin with '{'")
    header = parse_object(file, 8, start, "header", strict=True)
    file.release(0, start)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise file.error("__metadata__", "is not an object of strings")
    if len(header) > MAX_TENSORS:
        raise file.error("header", f"names {len(header)} tensors, at most {MAX_TENSORS} are allowed")
    stored = {name: _entry(file, name, entry, start) for name, entry in header.items()}
    end = start
    for info, _, begin in sorted(stored.values(), key=lambda entry: (entry.offset, entry.info.nbytes)):
        if begin != end:
            problem = "overlaps the tensor before it" if begin < end else f"leaves {begin - end} bytes before it unused"
            raise file.error(f"tensor {quoted(info.name)} data_offsets", problem)
        end += info.nbytes
    if end != file.size:
        raise file.error("data_offsets", f"tensors end at byte {end}, the file at {file.size}")
    return stored


def _entry(file: MappedFile, name: str, entry: object, start: int) -> Stored:
    field = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise file.error(field, "is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise file.error(f"{field} dtype", "is not a string")
    if dtype not in DTYPE_BITS:
        raise file.error(f"{field} dtype", f"{quoted(dtype)} is not a known type")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise file.error(f"{field} shape", f"is not a list of at most {MAX_RANK} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise file.error(f"{field} data_offsets", "is not a pair of offsets")
    # Zero sizes are counted as one here: the other sizes must make sense without them.
    if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise file.error(f"{field} shape", f"{shape} is not a plausible shape")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    begin, end = offsets
    if end < begin or end > file.size - start:
        raise file.error(f"{field} data_offsets", f"{offsets} in {file.size - start} bytes of data")
    if (end - begin) * 8 != bits:
        raise file.error(f"{field} data_offsets", f"{offsets} do not hold {dtype} of shape {shape}")
    return Stored(TensorInfo(name, tuple(shape), dtype, end - begin), file, start + begin)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    # bool is a subclass of int, and true is no size
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    bf16_names: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float32 and float16 arrays, and, for the names in `bf16_names`, uint16 arrays of bfloat16 bits.

    The file appears under `path` only when all of it is on disk. Raises `ValueError` for another dtype or a reserved
    name, `CapacityError` when the disk is full, `CheckpointError` when it cannot be written.
    """
    path = Path(path)
    dtypes = {name: _written_dtype(name, array, bf16_names) for name, array in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # widest first keeps all data aligned
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": dtypes[name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    _write_array(file, tensors[name])
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"{path}: the disk is full, {offset} bytes are needed", remedy="free space") from error
        raise CheckpointError(path, "file", f"cannot be written: {error}", remedy="check the directory") from error


def _written_dtype(name: str, array: npt.NDArray[Any], bf16_names: Collection[str]) -> str:
    if name == "__metadata__":
        raise ValueError("a tensor cannot be named '__metadata__'")
    if name in bf16_names:
        if array.dtype != np.uint16:
            raise ValueError(f"tensor {name!r}: bfloat16 bits are given as uint16, not {array.dtype}")
        return "BF16"
    if array.dtype not in _WRITTEN:
        raise ValueError(f"tensor {name!r}: {array.dtype} is not written, only float32, float16 and bfloat16 bits")
    return _WRITTEN[array.dtype]


def _write_array(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    if array.size:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
