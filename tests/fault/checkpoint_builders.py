"""Hand-made headers, byte by byte, and what it means to refuse one."""

from __future__ import annotations

import json
import re
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.open import open_checkpoint

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: bytes = b"w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_file(
    *parts: bytes,
    tensors: int = 0,
    keys: int = 0,
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return head + b"\0" * (-len(head) % alignment) + data if data else head


def pack_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_refused(path: Path, field: str, problem: str) -> None:
    """The typed error, at once, without the memory that the file claims."""
    tracemalloc.start()
    began = time.thread_time()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    seconds = time.thread_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.path.startswith(str(path if path.is_dir() else path.parent))
    assert seconds < 0.5
    assert peak < max(32 * (path.stat().st_size), 1 << 20)
    assert caught.value.remedy
    assert re.search(field, caught.value.field), caught.value.field
    assert re.search(problem, caught.value.problem), caught.value.problem
