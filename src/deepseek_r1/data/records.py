"""Records of training data from JSON Lines, JSON and Parquet files, one at a time, each brought to one of three shapes.

The shapes are those that published data sets have: chats, prompts with completions, plain texts.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.data.errors import DataError

MAX_LINE_BYTES = 16 << 20
MAX_LIST_BYTES = 256 << 20  # of a JSON file that is one list, which has to be read as a whole
PARQUET_ROWS = 64  # read at a time

ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
"""Roles as files name them, and what templates call them; the last two are ShareGPT's."""

SHAPES = (
    'give {"messages": [{"role": …, "content": …}, …]}, {"prompt": …, "completion": …} or {"text": …} in every record'
)
REFUSED_IN_RECORDS = ("tools", "functions")
REFUSED_IN_MESSAGES = ("tool_calls", "function_call", "weight")
"""Fields that change what a conversation teaches: training as if they weren't there would teach something else."""

COLUMNS = ("messages", "conversations", "prompt", "completion", "text", "tools", "functions")


@dataclass(frozen=True)
class Record:
    """One record, checked. `place` says where it stands: file and line, row or number.

    `fields` holds one shape: `messages` (a list of `{"role", "content"}`), `prompt` and `completion` (both strings or
    both such lists), or `text`.
    """

    fields: dict[str, Any]
    place: str


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a `.jsonl`, `.json` (a list, or JSON Lines) or `.parquet` file, in the file's order.

    Of several shapes in one record the first of messages, conversations, prompt with completion, and text counts.
    Raises `DataError` for a file that can't be read or has no record, and for a record that has none of the shapes;
    `UnsupportedError` for Parquet without pyarrow.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".json", ".parquet"):
        raise DataError(str(path), "", "not a data file", remedy="name it .jsonl, .json or .parquet")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(str(path), "", "not a regular file", remedy="give the path of a data file")
        yield from _checked(path, _rows(path) if suffix == ".parquet" else _objects(path, suffix))
    except OSError as error:
        raise DataError(
            str(path), "", f"cannot be read: {error.strerror or error}", remedy="give the path of a readable file"
        ) from None


def _checked(path: Path, values: Iterator[tuple[Any, str]]) -> Iterator[Record]:
    empty = True
    for value, place in values:
        empty = False
        yield Record(_shape(value, place), place)
    if empty:
        raise DataError(str(path), "", "holds no record", remedy=SHAPES)


# --- files ------------------------------------------------------------------------------------------------------------


def _objects(path: Path, suffix: str) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as file:
        if suffix == ".json" and _is_list(file):
            data = file.read(MAX_LIST_BYTES + 1)
            if len(data) > MAX_LIST_BYTES:
                raise DataError(
                    str(path), "", f"a list of more than {MAX_LIST_BYTES >> 20} MiB", remedy="write it as JSON Lines"
                )
            for number, value in enumerate(_parse(data, str(path)), 1):
                yield value, f"{path}: record {number}"
            return
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    place, "", f"a line of more than {MAX_LINE_BYTES >> 20} MiB", remedy="one record per line, shorter"
                )
            if line.strip():
                yield _parse(line, place), place


def _is_list(file: BinaryIO) -> bool:
    """Whether a file's first letter opens a list; the file is back at its start afterwards."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _parse(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        problem = "not UTF-8 text"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = f"not JSON: {error}"
    raise DataError(place, "", problem, remedy="write one JSON object per line, or a list of them in a .json file")


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """The rows of a Parquet file, without what is null in them."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise UnsupportedError(
            f"{path}: Parquet files are read with pyarrow, which is not installed",
            remedy="pip install 'deepseek-r1-toolkit[train]'",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            if not columns:
                names = ", ".join(file.schema_arrow.names[:8])
                raise DataError(str(path), "", f"none of its columns ({names}) is known", remedy=SHAPES)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                if batch.nbytes > PARQUET_ROWS * MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}: row {number + 1}",
                        "",
                        f"rows of more than {MAX_LINE_BYTES >> 20} MiB",
                        remedy="split the records",
                    )
                for row in batch.to_pylist():
                    number += 1
                    yield _without_nulls(row), f"{path}: row {number}"
    except (pyarrow.ArrowException, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise DataError(str(path), "", f"not a sound Parquet file: {problem}", remedy="write the file again") from None


def _without_nulls(value: Any) -> Any:
    """A column that only some rows have is null in the others, and so are the members of its structures."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(member) for member in value] if isinstance(value, list) else value


# --- shapes -----------------------------------------------------------------------------------------------------------


def _shape(value: Any, place: str) -> dict[str, Any]:
    """The fields of a record in the one form that `Record` promises."""
    if not isinstance(value, dict):
        raise DataError(place, "", f"a {type(value).__name__}, not an object with fields", remedy=SHAPES)
    for name in ("messages", "conversations"):
        if name in value:
            _refuse(value, REFUSED_IN_RECORDS, place, "")
            return {"messages": _messages(value[name], place, name)}
    if "prompt" in value and "completion" in value:
        _refuse(value, REFUSED_IN_RECORDS, place, "")
        prompt, completion = value["prompt"], value["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return {name: _messages(value[name], place, name) for name in ("prompt", "completion")}
        if isinstance(prompt, list) or isinstance(completion, list):
            raise DataError(
                place, "completion", "of another kind than the prompt", remedy="give two texts, or two message lists"
            )
        return {name: _text(value[name], place, name) for name in ("prompt", "completion")}
    if "text" in value:
        return {"text": _text(value["text"], place, "text")}
    for name, other in (("prompt", "completion"), ("completion", "prompt")):
        if other in value:
            raise DataError(place, name, "is missing", remedy=SHAPES)
    names = ", ".join(repr(str(name))[:40] for name in list(value)[:8])
    raise DataError(place, "", f"none of its fields ({names}) is known", remedy=SHAPES)


def _messages(value: Any, place: str, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise DataError(place, field, "must be a list of messages, at least one", remedy=SHAPES)
    return [_message(message, place, f"{field}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, place: str, field: str) -> dict[str, str]:
    """A message with `role` and `content` alone; reasoning in a field of its own is put before the answer."""
    if not isinstance(message, dict):
        raise DataError(place, field, "must be an object with role and content", remedy=SHAPES)
    _refuse(message, REFUSED_IN_MESSAGES, place, field)
    role_name = "from" if "from" in message and "role" not in message else "role"
    content_name = "value" if "value" in message and "content" not in message else "content"
    for name in (role_name, content_name):
        if name not in message:
            raise DataError(place, f"{field}.{name}", "is missing", remedy=SHAPES)
    role = message[role_name]
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(
            place, f"{field}.{role_name}", f"{repr(role)[:40]} is not a role", remedy=f"roles: {', '.join(ROLES)}"
        )
    content = _text(message[content_name], place, f"{field}.{content_name}")
    if message.get("reasoning_content") and ROLES[role] == "assistant":
        reasoning = _text(message["reasoning_content"], place, f"{field}.reasoning_content")
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
    return {"role": ROLES[role], "content": content}


def _refuse(fields: dict[str, Any], names: tuple[str, ...], place: str, field: str) -> None:
    for name in names:
        value = fields.get(name)
        ordinary = value in (None, 1) if name == "weight" else not value
        if not ordinary:
            raise DataError(
                place,
                f"{field}.{name}".removeprefix("."),
                "is not supported in training data",
                remedy="write tool calls into the messages' content, and leave out what should not train",
            )


def _text(value: Any, place: str, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(place, field, f"must be text, not {type(value).__name__}", remedy=SHAPES)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise DataError(
            place, field, "holds half of a surrogate pair, which is no text", remedy="write the record's text again"
        ) from None
    if size > MAX_LINE_BYTES:
        raise DataError(place, field, f"more than {MAX_LINE_BYTES >> 20} MiB of text", remedy="split the record")
    return value
