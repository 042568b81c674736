from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_builders import assert_refused, entry, pack_safetensors

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors

EIGHT = b"\0" * 8
SAFETENSORS_CASES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "file", "is empty"),
    "seven bytes": (b"\0" * 7, "header length", "only 7 bytes"),
    "length 2^63": ((2**63).to_bytes(8, "little") + b"{}", "header length", "at most 100000000"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", "header length", "at most 100000000"),
    "length over the file": ((90_000_000).to_bytes(8, "little") + b"{}", "header length", "the file has 2 after it"),
    "length zero": (b"\0" * 8 + b"{}", "header", "is not JSON"),
    "no object": (pack_safetensors(b"[]", b""), "header", "does not begin"),
    "space first": (pack_safetensors(b" {}", b""), "header", "does not begin"),
    "no JSON": (pack_safetensors(b"{]", b""), "header", "is not JSON"),
    "no UTF-8": (pack_safetensors(b'{"\xff":1}', b""), "header", "is not JSON"),
    "deep lists": (pack_safetensors(b'{"a":' + b"[" * 100_000, b""), "header", "nested too deeply"),
    "deep objects": (pack_safetensors(b'{"a":' * 100_000, b""), "header", "nested too deeply"),
    "too many objects": (pack_safetensors(b'{"a":[' + b"{}," * 600_000, b""), "header", "more than 600000 objects"),
    "wide text": (
        pack_safetensors(b'{"__metadata__":{"a":"\xf0\x9f\x90\x8b' + b"x" * (24 << 20), b""), "header", "beyond ASCII"
    ),
    "number of 5000 digits": (pack_safetensors(b'{"a":' + b"9" * 5000 + b"}", b""), "header", "is not JSON"),
    "NaN": (pack_safetensors(b'{"a":NaN}', b""), "header", "NaN is not JSON"),
    "name twice": (
        pack_safetensors(b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2), EIGHT), "header key 'w'", "twice"
    ),
    "dtype twice": (pack_safetensors(b'{"w":{"dtype":"F32","dtype":"F16"}}', EIGHT), "header key 'dtype'", "twice"),
    "name is a lone surrogate": (pack_safetensors(b'{"\\ud800":{}}', b""), "header", "is not JSON"),
    "metadata is a lone surrogate": (pack_safetensors({"__metadata__": {"a": "\ud800"}}, b""), "header", "is not JSON"),
    "metadata is a list": (pack_safetensors({"__metadata__": []}, b""), "__metadata__", "object of strings"),
    "metadata of numbers": (pack_safetensors({"__metadata__": {"a": 1}}, b""), "__metadata__", "object of strings"),
    "entry is a list": (pack_safetensors({"w": []}, b""), "tensor 'w'", "is not an object of"),
    "entry lacks a key": (pack_safetensors({"w": {"dtype": "F32", "shape": []}}, b""), "tensor 'w'", "not an object"),
    "entry with another key": (pack_safetensors({"w": entry() | {"x": 1}}, EIGHT), "tensor 'w'", "not an object of"),
    "dtype unknown": (pack_safetensors({"w": entry("Q4_0")}, EIGHT), "tensor 'w' dtype", "'Q4_0' is not a known"),
    "dtype is a number": (pack_safetensors({"w": entry(7)}, EIGHT), "tensor 'w' dtype", "is not a string"),
    **{
        f"shape {shape}": (pack_safetensors({"w": entry(shape=shape)}, EIGHT), "tensor 'w' shape", problem)
        for shape, problem in (
            (None, "not a list"), (2, "not a list"), ([-2], "not a list"), ([2.0], "not a list"),
            ([True, 2], "not a list"), (["2"], "not a list"), ([2**63], "not a list"), ([2**64, 1], "not a list"),
            ([1] * 33, "at most 32"),
            ([2**62, 4], "plausible"), ([2**32, 2**32], "plausible"), ([0, 2**62, 2**62], "plausible"),
        )
    },
    **{
        f"offsets {offsets}": (pack_safetensors({"w": entry(offsets=offsets)}, EIGHT), "tensor 'w' data_off", problem)
        for offsets, problem in (
            (None, "not a pair"), ([0], "not a pair"), ([0, 4, 8], "not a pair"), ([-8, 0], "not a pair"),
            ([0, 8.0], "not a pair"), ([False, 8], "not a pair"), ([0, 2**64], "not a pair"), ([8, 0], "in 8 bytes"),
            ([0, 16], "in 8 bytes"), ([2**62, 2**62 + 8], "in 8 bytes"), ([0, 4], "do not hold F32"),
        )
    },
    "overlap": (
        pack_safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT + b"\0" * 4), "tensor 'b' data", "overlaps"
    ),
    "same bytes twice": (pack_safetensors({"a": entry(), "b": entry()}, EIGHT), "tensor 'b' data_offsets", "overlaps"),
    "hole at the start": (pack_safetensors({"w": entry(offsets=[8, 16])}, EIGHT * 2), "tensor 'w' data", "leaves 8"),
    "hole between": (
        pack_safetensors({"a": entry(), "b": entry(offsets=[9, 17])}, EIGHT * 2 + b"\0"), "tensor 'b' data", "leaves 1"
    ),
    "bytes left over": (pack_safetensors({"w": entry()}, EIGHT + b"\0"), "data_offsets", "the file at"),
    "cut data": (pack_safetensors({"w": entry()}, EIGHT)[:-1], "tensor 'w' data_offsets", "in 7 bytes"),
    "half bytes": (pack_safetensors({"w": entry("F4", [3], [0, 1])}, b"\0"), "tensor 'w' data", "do not hold F4"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS_CASES)
def test_safetensors_that_lie(tmp_path: Path, name: str) -> None:
    data, field, problem = SAFETENSORS_CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert_refused(path, f"^{field}", problem)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("content", "where", "field", "problem"),
    [
        ({}, INDEX, "weight_map", "missing"),
        ([], INDEX, "content", "not a JSON object"),
        ({"weight_map": {}}, INDEX, "weight_map", "empty"),
        ({"weight_map": ["one.safetensors"]}, INDEX, "weight_map", "no object"),
        ({"weight_map": {"w": 5}}, INDEX, "weight_map 'w'", "is no file name"),
        ({"weight_map": {"w": "../one.safetensors"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "/tmp/one.safetensors"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "a\\one.safetensors"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "one.safetensors\0"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "\ud800.safetensors"}}, INDEX, "content", "is not JSON"),
        ({"weight_map": {"w": "config.json"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "x" * 300 + ".safetensors"}}, INDEX, "weight_map 'w'", "not a plain"),
        ({"weight_map": {"w": "two.safetensors"}}, INDEX, "file 'two.safetensors'", "missing"),
        ({"weight_map": {"v": "one.safetensors"}}, "one.safetensors", "tensor 'v'", "promises it here"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(4097)}}, INDEX, "weight_map", "4097 files"),
    ],
)
def test_index_that_lies(tmp_path: Path, content: Any, where: str, field: str, problem: str) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"w": np.ones(2, np.float32)})
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.path == str(tmp_path / where)
    assert caught.value.field == field
    assert problem in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a":' * 100_000, b" " * (17 << 20)])
def test_config_that_is_no_object(tmp_path: Path, content: bytes) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones(2, np.float32)})
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")
