"""JSON from a mapped file, with bounded memory, depth and numbers, and no silent repair."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.mapped import MappedFile, quoted

# Twice what a header of 100,000 tensors needs. Few bytes of JSON can name objects of hundreds of bytes each.
MAX_CONTAINERS = 600_000
MAX_ITEMS = 1_500_000
MAX_WIDE_BYTES = 24 << 20  # of text beyond ASCII: one wide character makes Python store every character in four bytes


def parse_object(file: MappedFile, start: int, stop: int, field: str, *, strict: bool) -> dict[str, Any]:
    """The JSON object in bytes `start` to `stop`. `strict` also refuses repeated keys, NaN and Infinity.

    Raises `CheckpointError` that names `field`.
    """
    file.require(stop, field)
    raw = file.bytes(start, stop)
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS or raw.count(b",") > MAX_ITEMS:
        raise file.error(field, f"holds more than {MAX_CONTAINERS} objects and lists or {MAX_ITEMS} items")
    if len(raw) > MAX_WIDE_BYTES and not raw.isascii():
        raise file.error(field, f"is {len(raw)} bytes of text beyond ASCII, at most {MAX_WIDE_BYTES} are allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise file.error(f"{field} key {quoted(name)}", "appears twice")
        return members

    def constant(name: str) -> Any:
        raise file.error(field, f"{name} is not JSON")

    try:
        text = raw.decode("utf-8")
        del raw
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant) if strict else json.loads(text)
        _require_text(value)
    except CheckpointError:
        raise
    except RecursionError as error:
        raise file.error(field, "is nested too deeply") from error
    except ValueError as error:
        raise file.error(field, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise file.error(field, "is not a JSON object")
    return value


def _require_text(value: object) -> None:
    """Raise UnicodeEncodeError for a string with a lone surrogate: JSON can spell it, but it is no text."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for key, member in value.items():
            _require_text(key)
            _require_text(member)
    elif isinstance(value, list):
        for member in value:
            _require_text(member)
