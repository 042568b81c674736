"""GGUF version 2 and 3, little-endian: metadata and tensor directory over a mapped file.

A header is read as if it lied: every count and length is checked against the bytes that are left before it is used.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.models.checkpoint.base import MAX_ELEMENTS, MAX_TENSORS, Checkpoint, Stored, TensorInfo
from deepseek_r1.models.checkpoint.mapped import MappedFile, quoted

MAGIC = b"GGUF"

MAX_HEADER_BYTES = 64 << 20  # metadata and tensor directory; the largest vocabularies take about 20 MiB
MAX_KEYS = 100_000
MAX_STRINGS = 1 << 21  # array elements in the whole file
MAX_NAME_BYTES = 65_535
MAX_ALIGNMENT = 1 << 24

# ggml's type number -> (name, elements per block, bytes per block). All can be listed, base.READABLE can be read.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    kind: struct.Struct(code)
    for kind, code in (
        (0, "<B"), (1, "<b"), (2, "<H"), (3, "<h"), (4, "<I"), (5, "<i"),
        (6, "<f"), (_BOOL, "<B"), (10, "<Q"), (11, "<q"), (12, "<d"),
    )
}  # fmt: skip


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file: reads its header, no tensor data.

    Metadata arrays of numbers become numpy arrays, arrays of strings lists. Bytes that are not UTF-8 become
    surrogate escapes in string arrays (a vocabulary must not lose them) and U+FFFD in single strings (which are shown).
    Raises `ModelNotFoundError`, `CheckpointError`, and `UnsupportedError` for one part of a split file.
    """
    file = MappedFile(path)
    try:
        header = _Header(file)
        tensor_count, key_count = header.preamble()
        metadata = header.metadata(key_count)
        entries = [header.tensor(index) for index in range(tensor_count)]
        alignment = _alignment(file, metadata)
        start = -(-header.at // alignment) * alignment
        stored = _place(file, entries, alignment, start)
        file.release(0, header.at)
        _refuse_parts(file, metadata)
    except BaseException:
        file.close()
        raise
    return Checkpoint(path, "gguf", metadata, stored, (file,))


class _Header:
    """A cursor over the header. `field` in every call is what an error names."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.at = 0
        self.end = min(file.size, MAX_HEADER_BYTES)
        self.strings = 0

    def preamble(self) -> tuple[int, int]:
        """(number of tensors, number of metadata keys), both plausible."""
        if self._take(4, "magic") != MAGIC:
            raise self.file.error("magic", "is not GGUF", remedy="name a .gguf or .safetensors checkpoint")
        version = self._number(_U32, "version")
        if version not in (2, 3):
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            problem = "the file is big-endian" if big_endian else f"is {version}, versions 2 and 3 can be read"
            raise self.file.error("version", problem, remedy="convert the model again with a current converter")
        tensors = self._number(_U64, "tensor count")
        keys = self._number(_U64, "metadata count")
        self._check_count(keys, MAX_KEYS, 8 + 4 + 1, "metadata count")
        self._check_count(tensors, MAX_TENSORS, 8 + 4 + 4 + 8, "tensor count")
        return tensors, keys

    def metadata(self, count: int) -> dict[str, Any]:
        """All key-value pairs."""
        pairs: dict[str, Any] = {}
        for index in range(count):
            key = self._name(f"metadata key {index}")
            field = f"metadata {quoted(key)}"
            if key in pairs:
                raise self.file.error(field, "appears twice")
            pairs[key] = self._value(self._number(_U32, field), field)
        return pairs

    def tensor(self, index: int) -> tuple[TensorInfo, int]:
        """One directory entry: the tensor and its offset from the start of the data."""
        name = self._name(f"tensor {index} name")
        field = f"tensor {quoted(name)}"
        rank = self._number(_U32, f"{field} dimensions")
        if rank > 4:
            raise self.file.error(f"{field} dimensions", f"{rank} dimensions, at most 4 are allowed")
        dims = [self._number(_U64, f"{field} dimensions") for _ in range(rank)]
        elements = math.prod(dims)
        if 0 in dims or elements > MAX_ELEMENTS:
            raise self.file.error(f"{field} dimensions", f"{dims} is not a plausible shape")
        number = self._number(_U32, f"{field} type")
        if number not in TENSOR_TYPES:
            raise self.file.error(
                f"{field} type",
                f"{number} is not a known type",
                remedy="convert the model to a common type such as Q8_0",
            )
        dtype, per_block, width = TENSOR_TYPES[number]
        if (dims[0] if dims else 1) % per_block:
            raise self.file.error(
                f"{field} dimensions", f"rows of {dims} do not divide into {dtype} blocks of {per_block}"
            )
        offset = self._number(_U64, f"{field} offset")
        return TensorInfo(name, tuple(reversed(dims)), dtype, elements // per_block * width), offset

    def _value(self, kind: int, field: str) -> Any:
        if kind == _STRING:
            return self._string(field).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(field)
        if kind not in _SCALARS:
            raise self.file.error(field, f"value type {kind} does not exist")
        value = self._number(_SCALARS[kind], field)
        if kind != _BOOL:
            return value
        if value > 1:
            raise self.file.error(field, f"{value} is not a truth value")
        return value == 1

    def _array(self, field: str) -> Any:
        kind = self._number(_U32, field)
        count = self._number(_U64, field)
        if kind == _STRING:
            self._check_count(count, MAX_STRINGS - self.strings, 8, field)
            self.strings += count
            return self._string_array(count, field)
        if kind not in _SCALARS:
            nested = "nested arrays are not supported" if kind == _ARRAY else f"value type {kind} does not exist"
            raise self.file.error(field, nested)
        dtype = np.dtype(_SCALARS[kind].format)
        self._check_count(count, MAX_HEADER_BYTES, dtype.itemsize, field)
        values = np.frombuffer(self._take(count * dtype.itemsize, field), dtype)
        if kind != _BOOL:
            return values
        if count and values.max() > 1:
            raise self.file.error(field, "holds bytes that are no truth values")
        return values.astype(np.bool_)

    def _string_array(self, count: int, field: str) -> list[str]:
        # Vocabularies hold 100k strings and more: this loop does by hand what _string does.
        strings = []
        at, end, read, size = self.at, self.end, self.file.bytes, _U64.size
        for index in range(count):
            self.at, begin = at, at + size
            length = int.from_bytes(read(at, begin), "little")
            at = begin + length
            if at > end:
                self._need(size + length, f"{field}[{index}]")
            strings.append(read(begin, at).decode("utf-8", "surrogateescape"))
        self.at = at
        return strings

    def _name(self, field: str) -> str:
        name = self._string(field, MAX_NAME_BYTES)
        try:
            decoded = name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.file.error(field, f"is not UTF-8: {error.reason} at byte {error.start}") from error
        if not decoded:
            raise self.file.error(field, "is empty")
        return decoded

    def _string(self, field: str, limit: int = MAX_HEADER_BYTES) -> bytes:
        length = self._number(_U64, field)
        if length > limit:
            raise self.file.error(field, f"claims {length} bytes, at most {limit} are allowed")
        return self._take(length, field)

    def _number(self, layout: struct.Struct, field: str) -> Any:
        (value,) = layout.unpack(self._take(layout.size, field))
        return value

    def _take(self, length: int, field: str) -> bytes:
        self._need(length, field)
        self.at += length
        return self.file.bytes(self.at - length, self.at)

    def _need(self, length: int, field: str) -> None:
        left = self.end - self.at
        if length > left:
            bound = "file" if self.end == self.file.size else f"header (at most {MAX_HEADER_BYTES} bytes)"
            raise self.file.error(
                field, f"needs {length} bytes at offset {self.at}, the {bound} has {max(left, 0)} left"
            )

    def _check_count(self, count: int, limit: int, least: int, field: str) -> None:
        if count > limit:
            raise self.file.error(field, f"claims {count} items, at most {limit} are allowed")
        self._need(count * least, field)


def _alignment(file: MappedFile, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise file.error(
            "metadata 'general.alignment'",
            f"{value if type(value) is int else type(value).__name__} is not a power of two up to {MAX_ALIGNMENT}",
        )
    return value


def _place(file: MappedFile, entries: list[tuple[TensorInfo, int]], alignment: int, start: int) -> dict[str, Stored]:
    """Absolute places of all tensors, checked to be aligned, inside the file, apart from each other, and named once."""
    stored: dict[str, Stored] = {}
    for info, offset in entries:
        field = f"tensor {quoted(info.name)}"
        if info.name in stored:
            raise file.error(field, "appears twice")
        if offset % alignment:
            raise file.error(f"{field} offset", f"{offset} is not a multiple of the alignment {alignment}")
        if start + offset + info.nbytes > file.size:
            raise file.error(
                f"{field} offset", f"bytes {start + offset} to {start + offset + info.nbytes} of a file of {file.size}"
            )
        stored[info.name] = Stored(info, file, start + offset)
    end = 0
    for info, _, begin in sorted(stored.values(), key=lambda entry: entry.offset):
        if begin < end:
            raise file.error(f"tensor {quoted(info.name)} offset", "overlaps the tensor before it")
        end = begin + info.nbytes
    return stored


def _refuse_parts(file: MappedFile, metadata: dict[str, Any]) -> None:
    parts = metadata.get("split.count", 1)
    if type(parts) is int and parts > 1:
        raise UnsupportedError(
            f"{file.path}: is one of {parts} parts of a split GGUF", remedy="join them: llama-gguf-split --merge"
        )
