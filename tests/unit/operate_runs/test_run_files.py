from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.core.errors import CapacityError, ConfigError
from deepseek_r1.operate.runs import read
from deepseek_r1.operate.runs.read import METRICS, ROLLOUTS, Curves, RunError, follow, read_curves, read_run, read_step
from deepseek_r1.operate.runs.rollouts import Filters, RolloutIndex, Sign
from deepseek_r1.operate.runs.rows import MAX_TEXT, disarmed
from deepseek_r1.operate.runs.write import RunWriter
from support.run_folder import HOSTILE, metrics, rollouts, write_run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    with write_run(tmp_path / "run", 3) as writer:
        writer.finish("finished")
    assert lines(tmp_path / "run" / METRICS) == [metrics(step) for step in (1, 2, 3)]
    assert lines(tmp_path / "run" / ROLLOUTS) == [row for step in (1, 2, 3) for row in rollouts(step)]
    fields = json.loads((tmp_path / "run/run.json").read_text())
    assert fields["status"] == "finished" and fields["started"] <= fields["ended"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", METRICS, ROLLOUTS, "evaluation.json"}


def test_no_number_is_written_as_null(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.step({"loss": math.nan, "norm": math.inf, "rate": np.float64(0.5), "kl": None, "step": 1})
    assert (tmp_path / METRICS).read_text() == '{"step":1,"loss":null,"norm":null,"rate":0.5,"kl":null}\n'


def test_a_resumed_run_has_the_files_of_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_run(whole, 20).finish("finished")
    write_run(cut, 13)  # the last checkpoint is of step 10
    for name in (METRICS, ROLLOUTS):
        with (cut / name).open("ab") as file:
            file.write(b'{"step": 14, "lo')  # killed within a line
    started = read_run(cut).fields["started"]
    with RunWriter(cut) as writer:
        writer.rewind(10)
        writer.begin({"kind": "grpo", "model": "tiny", "steps": 20, "recipe": {"a": {"b": [1, 2]}, "note": HOSTILE}})
        for step in range(11, 21):
            writer.step(metrics(step))
            writer.rollouts(rollouts(step))
        writer.finish("finished")
    for name in (METRICS, ROLLOUTS):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((folder / "run.json").read_text()) for folder in (cut, whole))
    assert ours.pop("started") == started
    for fields in (ours, theirs):
        fields.pop("ended"), fields.pop("started", None)
    assert ours == theirs


@given(st.integers(0, 400), st.integers(-1, 9))
def test_wherever_a_writer_was_killed_the_next_one_goes_on(tmp_path_factory: Any, cut: int, step: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole = b"".join(json.dumps(metrics(each)).encode() + b"\n" for each in range(1, 6))
    (folder / METRICS).write_bytes(whole[:cut])
    writer = RunWriter(folder)
    kept = whole[:cut].rfind(b"\n") + 1
    assert (folder / METRICS).read_bytes() == whole[:kept]
    writer.rewind(step)
    left = [row["step"] for row in lines(folder / METRICS)]
    assert left == [each for each in range(1, 6) if each <= step][: whole[:kept].count(b"\n")]
    writer.step(metrics(10))
    assert [row["step"] for row in lines(folder / METRICS)] == [*left, 10]
    writer.close()


def test_minus_one_forgets_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, 3)
    with RunWriter(tmp_path) as writer:
        writer.rewind(-1)
        writer.step(metrics(0))
    assert lines(tmp_path / METRICS) == [metrics(0)]
    assert (tmp_path / ROLLOUTS).read_bytes() == b""


@pytest.mark.parametrize("name", [METRICS, ROLLOUTS, "run.json"])
def test_a_full_disk_loses_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = write_run(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 20:  # a part still fits
            return real(descriptor, bytes(data)[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    def call() -> None:
        match name:
            case "metrics.jsonl":
                writer.step(metrics(4))
            case "rollouts.jsonl":
                writer.rollouts(rollouts(4))
            case _:
                writer.finish("failed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "fsync", lambda descriptor: full(descriptor, b""))
        with pytest.raises(CapacityError, match="the disk is full") as caught:
            call()
    assert caught.value.remedy
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    call()  # there is space again
    assert read_curves(tmp_path).passed_over == 0
    assert (tmp_path / name).read_bytes() != before[name]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": 1.0}, "step must be an integer after 3"),
        ({"step": 3}, "step must be an integer after 3"),
        ({"step": True}, "metric 'step' must be a number"),
        ({"step": 4.0}, "step must be an integer"),
        ({"step": 4, "loss": "low"}, "metric 'loss' must be a number, not str"),
        ({"step": 10**13}, "step must be an integer"),
    ],
)
def test_wrong_metrics_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with write_run(tmp_path, 3) as writer, pytest.raises(ConfigError, match=words):
        writer.step(fields)
    assert len(lines(tmp_path / METRICS)) == 3


def test_wrong_rollouts_are_refused_all_together(tmp_path: Path) -> None:
    with write_run(tmp_path, 3) as writer:
        for wrong in ({"step": 2}, {"step": 4, "reward": "high"}, {"text": "no step"}):
            with pytest.raises(ConfigError, match="rollout"):
                writer.rollouts([*rollouts(4), wrong])
        with pytest.raises(ConfigError, match="call begin"):
            RunWriter(tmp_path / "other").finish("failed")
        with pytest.raises(ConfigError, match="JSON"):
            writer.begin({"model": tmp_path.stat})
        with pytest.raises(ConfigError, match="step must be"):
            writer.rewind(-2)
    assert len(lines(tmp_path / ROLLOUTS)) == 12


def test_long_and_broken_texts_are_bounded_and_the_trainers_own_fields_left_out(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.rollouts(
            [{"step": 1, "text": "\x00" * (MAX_TEXT + 5), "prompt": "\ud800", "attempt": 1, "correct": 1.0}]
        )
    (row,) = lines(tmp_path / ROLLOUTS)
    assert row["text"] == "\x00" * MAX_TEXT and row["prompt"] == "?" and not {"attempt", "correct"} & set(row)
    assert 3 * 6 * MAX_TEXT < read.CHUNK_BYTES


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written") as caught:
        RunWriter(tmp_path / "file")
    assert caught.value.remedy


# --- reading ----------------------------------------------------------------------------------------------------------


def test_following_sees_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CHUNK_BYTES", 64)
    path = tmp_path / "lines"
    whole = b"".join(b"%d" % number * (number % 40 + 1) + b"\n" for number in range(200))
    found: list[bytes] = []
    places: list[int] = []
    offset = 0
    for end in range(0, len(whole) + 37, 37):
        path.write_bytes(whole[:end])
        while (chunk := follow(path, offset)).next > offset:
            assert chunk.start == offset
            found += [line for _, line in chunk.lines()]
            places += [place for place, _ in chunk.lines()]
            offset = chunk.next
    assert [len(line) > 63 for line in whole.split(b"\n")].count(True) > 0  # those are passed over
    assert found == [line for line in whole.split(b"\n")[:-1] if len(line) <= 63]
    assert all(whole[place:].startswith(line + b"\n") for place, line in zip(places, found, strict=True))


def test_following_begins_anew_where_the_file_was_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthree\n")
    end = follow(path).next
    path.write_bytes(b"one\n")
    assert (follow(path, end).start, follow(path, end).data) == (0, b"one\n")
    path.write_bytes(b"one\nanother, longer\n")  # grown again past the old end
    assert follow(path, end).start == 0
    path.unlink()
    assert (follow(path, end).start, follow(path, end).next) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b'{"step": 1', b"\xff", b'{"step": -1}', b'{"step": 1e3}'])
def test_lines_that_are_none_are_passed_over(content: bytes) -> None:
    assert read_step(content) is None
    assert read_step(b'{"a":' * 100_000) is None
    assert read_step(b"[" * 60_000) is None


def test_hostile_values_of_metrics() -> None:
    row = {"step": 1, "loss": 1e305, "text": "x", "list": [1], "flag": True, "x" * 65: 1, "": 2, "a\x1b": 3, "n": None}
    assert read_step(json.dumps(row).encode()) == {"step": 1, "loss": None, "a\N{SYMBOL FOR ESCAPE}": 3, "n": None}
    many = {"step": 1} | {f"m{number}": number for number in range(1000)}
    assert len(read_step(json.dumps(many).encode()) or {}) == read.MAX_NAMES + 1
    curves = Curves()
    for number in range(200):
        curves.add(json.dumps({"step": number, f"m{number}": 1}).encode())
    assert len(curves.by_name) == read.MAX_NAMES


def test_a_step_that_comes_again_replaces_what_followed(tmp_path: Path) -> None:
    steps = [1, 2, 3, 4, 2, 3]
    text = "".join(json.dumps({"step": step, "loss": place}) + "\n" for place, step in enumerate(steps))
    (tmp_path / METRICS).write_text(text + "no line\n" + '{"step": 9')
    curves = read_curves(tmp_path)
    assert list(curves.by_name["loss"].steps) == [1, 2, 3]
    assert list(curves.by_name["loss"].values) == [0, 4, 5]
    assert curves.passed_over == 1 and curves.complete


def test_a_folder_with_bad_files_is_still_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / METRICS).touch()
    assert read_run(tmp_path).problems == () and read_run(tmp_path).fields == {}
    (tmp_path / "run.json").write_text("[" * 100_000)
    (tmp_path / "data.json").write_bytes(b" " * (read.MAX_JSON_BYTES + 1))
    (tmp_path / "evaluation.json").mkdir()
    run = read_run(tmp_path)
    assert [problem.split(" ")[0] for problem in run.problems[:2]] == ["run.json", "data.json"]
    assert "is not a file" in run.problems[2]
    (tmp_path / METRICS).unlink()
    os.mkfifo(tmp_path / METRICS)
    with pytest.raises(RunError, match="is not a file"):
        read_curves(tmp_path)


def test_texts_are_disarmed() -> None:
    assert disarmed({"a\x1b[2J": ["tab\tline\n", "\x9b\x7f\u202e\u2066\ufffe"]}) == {
        "a\N{SYMBOL FOR ESCAPE}[2J": ["tab\tline\n", "\ufffd" * 5]
    }
    assert disarmed("日本語 👩‍💻 é") == "日本語 👩‍💻 é"


# --- rollouts ---------------------------------------------------------------------------------------------------------


def texts(index: RolloutIndex, filters: Filters, limit: int = 100) -> list[str]:
    return [row.text.split(" <")[0] for _, row in index.select(filters, limit=limit).rows]


def test_rollouts_are_found_by_what_is_asked(tmp_path: Path) -> None:
    write_run(tmp_path, 3)
    index = RolloutIndex(tmp_path)
    index.refresh()
    assert index.families == ["countdown", "sums"]
    assert texts(index, Filters(), 2) == ["answer 3 of step 3", "answer 2 of step 3"]
    assert texts(index, Filters(family="sums", step=2)) == ["answer 3 of step 2", "answer 1 of step 2"]
    signs: dict[Sign, int] = {"negative": 0, "zero": 1, "positive": 2, "none": 3}
    for sign, choice in signs.items():
        assert texts(index, Filters(sign=sign)) == [f"answer {choice} of step {step}" for step in (3, 2, 1)]
    first = index.select(Filters(), limit=5)
    rest = index.select(Filters(), before=first.rows[-1][0], limit=100)
    assert (len(first.rows), first.more, len(rest.rows), rest.more, first.matching) == (5, True, 7, False, 12)
    assert index.select(Filters(), limit=0).newest == first.rows[0][0]
    samples = [(row.step, row.reward) for row in index.first_and_last(2, 3)]
    assert samples == [(1, None), (1, 1.0), (3, None), (3, 0.0), (3, 1.0)]


def test_the_index_follows_a_growing_and_a_resumed_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    index = RolloutIndex(tmp_path)
    index.refresh()
    assert index.select(Filters(), limit=5).rows == ()
    for step in (1, 2, 3):
        writer.rollouts(rollouts(step))
        index.refresh()
        assert index.select(Filters(), limit=0).matching == 4 * step
    writer.rewind(1)
    assert index.select(Filters(), limit=4).rows == ()  # gone since
    index.refresh()
    assert texts(index, Filters(), 1) == ["answer 3 of step 1"]
    with (tmp_path / ROLLOUTS).open("ab") as file:
        file.write(b'{"step": 2, "text": 5}\nnothing\n{"step": 2, "te')
    index.refresh()
    assert (index.select(Filters(), limit=0).matching, index.passed_over) == (4, 2)
