from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.data import records
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.records import read_records

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def jsonl(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def one(tmp_path: Path, value: Any) -> dict[str, Any]:
    (record,) = read_records(jsonl(tmp_path / "one.jsonl", value))
    return record.fields


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ({"messages": TALK, "prompt": "hi", "id": 7}, {"messages": TALK}),
        ({"messages": [{"role": "tool", "content": "", "name": "f", "tool_calls": None, "weight": 1}]},
         {"messages": [{"role": "tool", "content": ""}]}),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a"}]},
         {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": "a"}]}),
        ({"conversations": TALK}, {"messages": TALK}),
        ({"messages": [TALK[0], {"role": "assistant", "content": "4", "reasoning_content": "2+2\n"}]},
         {"messages": [TALK[0], {"role": "assistant", "content": "<think>\n2+2\n</think>\n\n4"}]}),
        ({"prompt": "q", "completion": "a", "text": "qa"}, {"prompt": "q", "completion": "a"}),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, {"prompt": TALK[:1], "completion": TALK[1:]}),
        ({"text": "some words", "tools": "a column", "weight": 3}, {"text": "some words"}),
    ],
)  # fmt: skip
def test_shapes(tmp_path: Path, value: Any, fields: dict[str, Any]) -> None:
    assert one(tmp_path, value) == fields


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([TALK], ": a list, not an object"),
        ({}, ": none of its fields () is known"),
        ({"question": "q"}, ": none of its fields ('question') is known"),
        ({"prompt": "q"}, ": completion: is missing"),
        ({"completion": "q"}, ": prompt: is missing"),
        ({"prompt": "q", "completion": TALK}, ": completion: of another kind"),
        ({"prompt": 3, "completion": "a"}, ": prompt: must be text, not int"),
        ({"prompt": [], "completion": TALK}, ": prompt: must be a list of messages"),
        ({"text": None}, ": text: must be text, not NoneType"),
        ({"text": "\ud83d"}, ": text: holds half of a surrogate pair"),
        ({"messages": []}, ": messages: must be a list of messages, at least one"),
        ({"messages": {"role": "user"}}, ": messages: must be a list"),
        ({"messages": ["hi"]}, ": messages[0]: must be an object"),
        ({"messages": [*TALK, {"role": "bot", "content": ""}]}, ": messages[2].role: 'bot' is not a role"),
        ({"messages": [{"role": ["user"], "content": ""}]}, ": messages[0].role: ['user'] is not a role"),
        ({"messages": [{"content": ""}]}, ": messages[0].role: is missing"),
        ({"messages": [{"role": "user"}]}, ": messages[0].content: is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ": messages[0].content: must be text, not l"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, ": messages[0].tool_calls: is not s"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, ": messages[0].weight: is not supported"),
        ({"messages": TALK, "tools": [{}]}, ": tools: is not supported"),
    ],
)
def test_records_of_no_shape_are_refused_with_their_line(tmp_path: Path, value: Any, where: str) -> None:
    path = jsonl(tmp_path / "bad.jsonl", {"text": "good"}, value)
    found = read_records(path)
    assert next(found).place == f"{path}:1"
    with pytest.raises(DataError) as caught:
        next(found)
    assert caught.value.message.startswith(f"{path}:2{where}")
    assert caught.value.remedy
    assert caught.value.place == f"{path}:2"


def test_lines(tmp_path: Path) -> None:
    """A byte order mark, blank lines, the other line ends, no line end at the end."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes('\ufeff{"text": "é"}\r\n\r\n  \n{"text": "b"}'.encode())
    assert [(record.fields["text"], record.place) for record in read_records(path)] == [
        ("é", f"{path}:1"),
        ("b", f"{path}:4"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_not_json(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line)
    assert refused(path).message.startswith(f"{path}:2: {problem}")


def test_json_files_hold_a_list_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('\n [{"text": "a"},\n {"text": "b"}]')
    assert [record.fields["text"] for record in read_records(path)] == ["a", "b"]
    path.write_text('[{"text": "a"}, {"texts": "b"}]')
    assert refused(path).place == f"{path}: record 2"
    jsonl(path, {"text": "a"}, {"text": "b"})
    assert [record.place for record in read_records(path)] == [f"{path}:1", f"{path}:2"]


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(records, "MAX_LIST_BYTES", 2 << 20)
    line = '{"text": "%s"}'
    fits = line % ("x" * ((1 << 20) - len(line % "") - 1))
    path = tmp_path / "long.jsonl"
    path.write_text(f"{fits}\n{fits}\n")
    assert len(list(read_records(path))) == 2
    path.write_text(f"{fits}\n{fits} \n")
    assert refused(path).message == f"{path}:2: a line of more than 1 MiB"
    listed = tmp_path / "long.json"
    listed.write_text(f"[{line % ('x' * (2 << 20))}]")
    assert refused(listed).problem == "a list of more than 2 MiB"
    listed.write_text(f"[{line % ('x' * (1 << 20) + 'x')}]")
    assert refused(listed).problem == "more than 1 MiB of text"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl").message
    (tmp_path / "folder.json").mkdir()
    assert "not a regular file" in refused(tmp_path / "folder.json").message
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in refused(tmp_path / "pipe.jsonl").message
    (tmp_path / "a.csv").write_text("text\n")
    assert "not a data file" in refused(tmp_path / "a.csv").message
    for name, words in (("a.jsonl", ""), ("b.jsonl", "\n\n"), ("c.json", "[]"), ("d.json", "")):
        (tmp_path / name).write_text(words)
        assert refused(tmp_path / name).message == f"{tmp_path / name}: holds no record"


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "data.parquet"
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])
    table = pa.table(
        {
            "messages": pa.array([TALK, None, *[TALK] * 200], pa.list_(message)),
            "text": pa.array([None, "plain", *[None] * 200]),
            "other": list(range(202)),
        }
    )
    parquet.write_table(table, path, row_group_size=70)
    found = list(read_records(path))
    assert [record.fields for record in found] == [{"messages": TALK}, {"text": "plain"}, *[{"messages": TALK}] * 200]
    assert [record.place for record in found] == [f"{path}: row {number}" for number in range(1, 203)]

    parquet.write_table(pa.table({"messages": pa.array([TALK, None], pa.list_(message))}), path)
    assert refused(path).message.startswith(f"{path}: row 2: none of its fields () is known")
    parquet.write_table(pa.table({"a": [1]}), path)
    assert refused(path).message == f"{path}: none of its columns (a) is known"
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "holds no record" in refused(path).message
    parquet.write_table(pa.table({"text": ["a" * 500] * 40}), path, compression="none")
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:200], whole[:-20], b"\0" * 99):
        path.write_bytes(data)
        assert "not a sound Parquet file" in refused(path).message
    path.write_bytes(whole)
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100)
    assert "rows of more than" in refused(path).message
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError, match="train"):
        list(read_records(path))
