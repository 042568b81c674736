"""Results survive a cut at any byte, and nothing else is taken for a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError
from deepseek_r1.evaluate.journal import FILE, Journal, Key, Result, settings_digest


def results(count: int) -> list[Result]:
    return [
        Key("s", "f", str(i), 0, "d").result(0.5, i, truncated=i == 1, text=f"é\n{i}\U0001f44b") for i in range(count)
    ]


def fill(folder: Path, some: list[Result]) -> None:
    with Journal(folder) as journal:
        for result in some:
            journal.append(result)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    some = results(3)
    fill(tmp_path / "new" / "folder", some[:2])
    fill(tmp_path / "new" / "folder", some[2:])
    with Journal(tmp_path / "new" / "folder") as journal:
        assert list(journal.results.values()) == some
        assert [key for key in journal.results] == [each.key for each in some]
    lines = (tmp_path / "new" / "folder" / FILE).read_text().splitlines()
    assert [json.loads(line)["place"] for line in lines] == ["0", "1", "2"]


def test_a_result_is_on_file_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(results(1)[0])
        assert (tmp_path / FILE).read_bytes().endswith(b"\n")


def test_a_line_that_was_cut_off_is_removed_wherever_it_was_cut(tmp_path: Path) -> None:
    some = results(2)
    fill(tmp_path, some)
    whole = (tmp_path / FILE).read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        with Journal(tmp_path) as journal:
            assert list(journal.results.values()) == some[:1]
            journal.append(some[1])
        assert (tmp_path / FILE).read_bytes() == whole


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"suite": 5}', "[" * 5000, ""])
def test_a_line_that_is_no_result(line: str, tmp_path: Path) -> None:
    fill(tmp_path, results(1))
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    before = (tmp_path / FILE).read_bytes()
    for _ in range(2):  # the lock is given back
        with pytest.raises(DataError, match=r"answers.jsonl:2: is no result"):
            Journal(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(ConfigError, match="another run writes here"):
        Journal(tmp_path)
    with Journal(tmp_path):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        Journal(tmp_path / "file")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Journal(None) as journal:
        journal.append(results(1)[0])
        assert len(journal.results) == 1
    assert list(tmp_path.iterdir()) == []


def test_digests() -> None:
    assert settings_digest({"a": 1, "b": 2}, "q") == settings_digest({"b": 2, "a": 1}, "q")
    different = {
        settings_digest({"a": 1}, "q"),
        settings_digest({"a": 1.5}, "q"),
        settings_digest({"a": 1}, "q", ""),
        settings_digest({"a": 1}, "p"),
        settings_digest({"a": 1}, "ab", "c"),
        settings_digest({"a": 1}, "a", "bc"),
    }
    assert len(different) == 6
