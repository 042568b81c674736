"""Reading suites from files: objects from JSON Lines, one by one, and texts; sizes are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from deepseek_r1.data.errors import DataError
from deepseek_r1.data.records import read_records

MAX_LINE_BYTES = 1 << 20
MAX_TEXT_BYTES = 64 << 20


def read_objects(path: Path, count: int | None, remedy: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The first `count` objects of a JSON Lines file (None: all), each with its line's number.

    Raises `DataError` with `remedy` for a line that is no object or too long, a file without any, or one that can't be
    read.
    """
    found = False
    for value, number in islice(_objects(path, remedy), count):
        found = True
        yield value, number
    if not found:
        raise DataError(str(path), "", "holds no record", remedy=remedy)


def _objects(path: Path, remedy: str) -> Iterator[tuple[dict[str, Any], int]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}", "", f"a line of more than {MAX_LINE_BYTES} bytes", remedy=remedy
                    )
                if line.strip():
                    yield _object(line, f"{path}:{number}", remedy), number
    except OSError as error:
        raise _unreadable(path, error) from None


def _object(line: bytes, place: str, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # of which UnicodeDecodeError is one
        raise DataError(place, "", "is not JSON", remedy=remedy) from None
    if not isinstance(value, dict):
        raise DataError(place, "", f"a {type(value).__name__}, not an object with fields", remedy=remedy)
    return value


def text_field(value: dict[str, Any], name: str, place: str, remedy: str) -> str:
    """A field that must be text, and not blank. Raises `DataError`."""
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise DataError(place, name, "is missing" if text is None else "must be text", remedy=remedy)
    return text


def read_texts(path: Path, count: int | None) -> list[tuple[str, str]]:
    """The first `count` texts of a file, each with its number: the `text` of records, or a plain file as one text.

    Raises `DataError` for files over `MAX_TEXT_BYTES`, that are not UTF-8, or have records of another shape.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise DataError(str(path), "", f"more than {MAX_TEXT_BYTES >> 20} MiB", remedy="take a part of it")
        if path.suffix.lower() not in (".jsonl", ".ndjson", ".json", ".parquet"):
            return [("1", path.read_bytes().decode("utf-8-sig"))]
    except UnicodeDecodeError as error:
        raise DataError(str(path), "", f"byte {error.start} is not UTF-8", remedy="give a text in UTF-8") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    texts = []
    for number, record in enumerate(islice(read_records(path), count), 1):
        if "text" not in record.fields:
            raise DataError(record.place, "text", "is missing", remedy='give {"text": …} in every record')
        texts.append((str(number), str(record.fields["text"])))
    return texts


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        str(path), "", f"cannot be read: {error.strerror or error}", remedy="give the path of a readable file"
    )
