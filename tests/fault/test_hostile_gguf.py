from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from checkpoint_builders import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    U8,
    U32,
    U64,
    array,
    assert_refused,
    gguf_file,
    pair,
    tensor,
    text,
)

ROOM = b"\0" * 4096
GGUF_CASES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "file", "is empty"),
    "three bytes": (b"GGU", "magic", "needs 4 bytes at offset 0"),
    "magic": (gguf_file(magic=b"GGML"), "magic", "is not GGUF"),
    "version 1": (gguf_file(version=1), "version", "is 1, versions 2 and 3"),
    "version 4": (gguf_file(version=4), "version", "is 4"),
    "big-endian": (gguf_file(version=3 << 24), "version", "big-endian"),
    "cut in the counts": (gguf_file()[:20], "metadata count", "needs 8 bytes at offset 16, the file has 4"),
    "tensor count over the bound": (gguf_file(tensors=2**60), "tensor count", "at most 100000"),
    "tensor count over the file": (gguf_file(ROOM, tensors=90_000), "tensor count", "needs 2160000 bytes"),
    "key count over the bound": (gguf_file(keys=2**64 - 1), "metadata count", "at most 100000"),
    "key count over the file": (gguf_file(ROOM, keys=50_000), "metadata count", "needs 650000 bytes"),
    "key length": (gguf_file(text(b"k", 2**63), ROOM, keys=1), "metadata key 0", "at most 65535"),
    "key length over the file": (gguf_file(text(b"k", 60_000), ROOM, keys=1), "metadata key 0", "needs 60000 bytes"),
    "key is no UTF-8": (gguf_file(pair(b"\xff\xfe", U8, b"\1"), keys=1), "metadata key 0", "not UTF-8"),
    "key is a surrogate": (gguf_file(pair(b"\xed\xa0\x80", U8, b"\1"), keys=1), "metadata key 0", "not UTF-8"),
    "key is empty": (gguf_file(pair(b"", U8, b"\1"), keys=1), "metadata key 0", "is empty"),
    "key twice": (gguf_file(pair(b"k", U8, b"\1") * 2, keys=2), "metadata 'k'", "twice"),
    "value type": (gguf_file(pair(b"k", 13, ROOM), keys=1), "metadata 'k'", "value type 13"),
    "value cut": (gguf_file(pair(b"k", U64, b"\1\2\3"), keys=1), "metadata 'k'", "needs 8 bytes"),
    "truth value": (gguf_file(pair(b"k", BOOL, b"\2"), keys=1), "metadata 'k'", "2 is not a truth value"),
    "string length": (gguf_file(pair(b"k", STRING, text(b"a", 2**60)), keys=1), "metadata 'k'", "at most"),
    "string length wraps": (gguf_file(pair(b"k", STRING, text(b"a", 2**64 - 8)), keys=1), "metadata 'k'", "at most"),
    "array of 2^60 bytes": (gguf_file(pair(b"k", ARRAY, array(U8, 2**60)), keys=1), "metadata 'k'", "at most"),
    "array over the file": (gguf_file(pair(b"k", ARRAY, array(U64, 9_999)), keys=1), "metadata 'k'", "needs 79992"),
    "array size wraps": (gguf_file(pair(b"k", ARRAY, array(U64, 2**61)), keys=1), "metadata 'k'", "at most"),
    "array of 2^60 strings": (gguf_file(pair(b"k", ARRAY, array(STRING, 2**60)), keys=1), "metadata 'k'", "at most"),
    "array of strings over the file": (
        gguf_file(pair(b"k", ARRAY, array(STRING, 2_000_000, ROOM)), keys=1), "metadata 'k'", "needs 16000000 bytes"
    ),
    "array with a lying string": (
        gguf_file(pair(b"k", ARRAY, array(STRING, 2, text(b"a") + text(b"b", 2**62))), keys=1),
        r"metadata 'k'\[1\]", "has 9 left",
    ),
    "array whose strings eat the next": (
        gguf_file(pair(b"k", ARRAY, array(STRING, 2, text(b"0123456789", 8))), keys=1), r"metadata 'k'\[1\]", "2 left"
    ),
    "array of arrays": (gguf_file(pair(b"k", ARRAY, array(ARRAY, 1, ROOM)), keys=1), "metadata 'k'", "nested"),
    "array of nothing known": (gguf_file(pair(b"k", ARRAY, array(99, 0)), keys=1), "metadata 'k'", "value type 99"),
    "array of no truth values": (
        gguf_file(pair(b"k", ARRAY, array(BOOL, 3, b"\0\1\7")), keys=1), "metadata 'k'", "no truth values"
    ),
    "five dimensions": (gguf_file(tensor(dims=(1,) * 5), ROOM, tensors=1), "tensor 'w' dimensions", "at most 4"),
    "2^32 dimensions": (
        gguf_file(text(b"w") + b"\xff" * 4, ROOM, tensors=1), "tensor 'w' dimensions", "4294967295 dimensions"
    ),
    "zero dimension": (gguf_file(tensor(dims=(0, 4)), ROOM, tensors=1), "tensor 'w' dimensions", "not a plausible"),
    "product wraps to 0": (gguf_file(tensor(dims=(2**32, 2**32)), ROOM, tensors=1), "tensor 'w' dim", "plausible"),
    "huge dimension": (gguf_file(tensor(dims=(2**64 - 1,)), ROOM, tensors=1), "tensor 'w' dimensions", "plausible"),
    "tensor type": (gguf_file(tensor(kind=4), ROOM, tensors=1), "tensor 'w' type", "4 is not a known type"),
    "tensor type 2^32-1": (gguf_file(tensor(kind=2**32 - 1), ROOM, tensors=1), "tensor 'w' type", "not a known type"),
    "rows split a block": (gguf_file(tensor(dims=(33,), kind=2), ROOM, tensors=1), "tensor 'w' dim", "blocks of 32"),
    "scalar block type": (gguf_file(tensor(dims=(), kind=8), ROOM, tensors=1), "tensor 'w' dim", "blocks of 32"),
    "tensor name length": (gguf_file(text(b"w", 2**40), ROOM, tensors=1), "tensor 0 name", "at most"),
    "tensor name is no UTF-8": (gguf_file(tensor(b"\x80"), ROOM, tensors=1), "tensor 0 name", "not UTF-8"),
    "tensor twice": (gguf_file(tensor(), tensor(offset=32), tensors=2, data=ROOM), "tensor 'w'", "twice"),
    "offset past the end": (gguf_file(tensor(offset=4096), tensors=1, data=ROOM), "tensor 'w' offset", "of a file of"),
    "offset wraps": (gguf_file(tensor(offset=2**64 - 32), tensors=1, data=ROOM), "tensor 'w' offset", "of a file of"),
    "offset unaligned": (gguf_file(tensor(offset=8), tensors=1, data=ROOM), "tensor 'w' offset", "alignment 32"),
    "data longer than the file": (gguf_file(tensor(dims=(1025,)), tensors=1, data=ROOM), "tensor 'w' off", "of a file"),
    "data claims terabytes": (gguf_file(tensor(dims=(2**40,)), tensors=1, data=ROOM), "tensor 'w' offset", "of a file"),
    "tensors overlap": (
        gguf_file(tensor(dims=(9,)), tensor(b"v", offset=32), tensors=2, data=ROOM), "tensor 'v' offset", "overlaps"
    ),
    "directory cut": (gguf_file(tensor() + tensor(b"v")[:-4], tensors=2), "tensor 'v' offset", "needs 8 bytes"),
    **{
        f"alignment {value}": (
            gguf_file(pair(b"general.alignment", U32, struct.pack("<I", value)), keys=1),
            "metadata 'general.alignment'", "is not a power of two",
        )
        for value in (0, 3, 48, 2**31, 2**32 - 1)
    },
    "alignment is a float": (
        gguf_file(pair(b"general.alignment", F32, struct.pack("<f", 32)), keys=1), "metadata 'general.", "float is not"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF_CASES)
def test_gguf_that_lies(tmp_path: Path, name: str) -> None:
    data, field, problem = GGUF_CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert_refused(path, f"^{field}", problem)


def test_a_header_that_would_fill_memory_is_refused_from_a_sparse_file(tmp_path: Path) -> None:
    """3 GiB of zeros on no disk: they read as empty strings, which a list of 2^28 would turn into gigabytes."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_file(text(b"k") + struct.pack("<I", ARRAY) + array(STRING, 2**28), keys=1))
    os.truncate(path, 3 << 30)
    assert_refused(path, "^metadata 'k'$", "claims 268435456 items")
    path.write_bytes(gguf_file(pair(b"k", STRING, text(b"", 2 << 30)), keys=1))
    os.truncate(path, 3 << 30)
    assert_refused(path, "^metadata 'k'$", "at most 67108864")
    path.write_bytes(gguf_file(pair(b"k", ARRAY, array(U64, 7_000_000)), keys=2))
    os.truncate(path, 3 << 30)
    assert_refused(path, "^metadata key 1$", "is empty")
