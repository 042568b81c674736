"""What a saved checkpoint consists of: its tensors, its state, and a manifest of the sizes and digests of both.

No pickle: the tensors are a safetensors file, the state is JSON. What is read is what was written, or refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.core.errors import CapacityError, ConfigError, UnsupportedError

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"

MAX_STATE_BYTES = 256 << 20
MAX_HEADER_BYTES = 64 << 20

_MAX_DEPTH = 100
_MAX_INT_BITS = 8192  # Python reads no longer numbers than 4300 digits
_DTYPES = {
    "I64": torch.int64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Saved:
    """A checkpoint read into memory."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Content:
    """A checkpoint about to be written: checked in full before its first byte is. `nbytes` is what it takes on disk.

    Raises `ConfigError` for a state that JSON would give back as another one, `UnsupportedError` for a tensor's type.
    """

    def __init__(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self._step = step
        self._state = _state_text(state)
        order, self._header = _header(tensors)
        self._tensors = [tensors[name] for name in order]
        self.nbytes = len(self._header) + sum(tensor.nbytes for tensor in self._tensors) + len(self._state)

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder, each to the disk itself. Raises `OSError`."""
        pieces: Iterator[bytes | memoryview] = chain((self._header,), map(_bytes, self._tensors))
        files = {TENSORS: _write(folder / TENSORS, pieces), STATE: _write(folder / STATE, (self._state,))}
        _write(folder / MANIFEST, (_manifest(self._step, files),))


def read_saved(path: Path, step: int) -> Saved:
    """A checkpoint whose files are what its manifest says. Raises `OSError` or `ValueError` for another one."""
    state = _content(path / STATE, MAX_STATE_BYTES)
    size = (path / TENSORS).lstat().st_size
    try:
        tensors = _content(path / TENSORS, size)
    except MemoryError:
        raise CapacityError(f"{path}: no memory for {size} bytes of tensors", remedy="free memory") from None
    files = {TENSORS: _entry(tensors), STATE: _entry(state)}
    manifest = _manifest(step, files)
    # Compared as a whole, not parsed: then not one byte of it can be another.
    if _content(path / MANIFEST, len(manifest)) != manifest:
        raise ValueError(f"its files are not what {MANIFEST} says")
    try:
        loaded = json.loads(state)
        if not isinstance(loaded, dict):
            raise ValueError("is no object")
        return Saved(step, _tensors(tensors), loaded)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, RuntimeError) as error:
        # Whatever files with the right digests that make no sense lead to; sound ones lead to none of these.
        raise ValueError(f"makes no sense: {error}") from None


def _content(path: Path, most: int) -> bytearray:
    """The bytes of a regular file of at most `most` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError(f"{path.name} is no regular file of at most {most} bytes")
        content = bytearray(status.st_size)
        view, done = memoryview(content), 0
        while done < len(content) and (count := file.readinto(view[done:])):
            done += count
    if done < len(content):
        raise ValueError(f"{path.name} was cut off while it was read")
    return content


def _tensors(content: bytearray) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as views of its bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    if start > min(len(content), MAX_HEADER_BYTES):
        raise ValueError(f"{TENSORS}: the header claims to end at byte {start}")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        dtype, shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(content) - start or end - begin != shape.numel() * dtype.itemsize:
            raise ValueError(f"{TENSORS}: {name!r} has no place in the file")
        count = shape.numel()
        flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + begin) if count else None
        tensors[name] = torch.empty(shape, dtype=dtype) if flat is None else flat.view(shape)
    return tensors


def _header(tensors: Mapping[str, Tensor]) -> tuple[list[str], bytes]:
    """The names in the order of their bytes (widest elements first: all are aligned), and what the file begins with.

    Format: https://huggingface.co/docs/safetensors/index#format
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UnsupportedError(
                f"tensor {name!r}: {tensor.dtype} is not saved", remedy=f"save it as one of {', '.join(_DTYPES)}"
            )
        if name == "__metadata__":
            raise ConfigError("a tensor can't be named '__metadata__': the file's format uses that name")
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    entries, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        place = [offset, offset := offset + tensor.nbytes]
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) + 8 > MAX_HEADER_BYTES:
        raise ConfigError(f"the names of {len(tensors)} tensors take {len(text)} bytes, more than {MAX_HEADER_BYTES}")
    return order, len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _state_text(state: Mapping[str, Any]) -> bytes:
    """The state as JSON from which exactly the same state is read."""
    plain = dict(state)
    _require_exact(plain, "state", 0)
    text = json.dumps(plain, separators=(",", ":")).encode()
    if len(text) > MAX_STATE_BYTES:
        raise ConfigError(f"the state takes {len(text)} bytes as JSON, at most {MAX_STATE_BYTES} are saved")
    return text


def _require_exact(value: object, place: str, depth: int) -> None:
    """Raise `ConfigError`, naming the place, for what JSON would give back as something else."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{place[:200]} is nested more than {_MAX_DEPTH} deep")
    if type(value) is dict:
        for key, member in value.items():
            if type(key) is not str:
                raise ConfigError(f"{place}: {key!r} is no name: JSON has text as keys")
            _require_exact(member, f"{place}.{key}", depth + 1)
    elif type(value) is list:
        for number, member in enumerate(value):
            _require_exact(member, f"{place}[{number}]", depth + 1)
    elif type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{place} is {value}, which JSON has no word for", remedy="save it as text or as None")
    elif type(value) is int and value.bit_length() > _MAX_INT_BITS:
        raise ConfigError(f"{place} is an integer of more than {_MAX_INT_BITS} bits", remedy="save it as text")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ConfigError(
            f"{place} is a {type(value).__name__}, which JSON does not keep",
            remedy="save None, bool, int, float, str, list or dict",
        )


def _manifest(step: int, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    return json.dumps({"version": 1, "step": step, "files": files}, separators=(",", ":")).encode()


def _entry(content: bytearray) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file to the disk itself; returns its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest[: 1 << 30]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}
