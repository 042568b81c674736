"""Checkpoints of a run whose writer is killed, whose bytes change, whose disk is full, or that two runs want."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_writers import NURSERY, assert_whole, saved_twice

from deepseek_r1.core.errors import CapacityError
from deepseek_r1.train import saved as saved_module
from deepseek_r1.train.saved import CheckpointFolderError, SavedRuns, read_latest
from deepseek_r1.train.saved_content import Content, read_saved

Order = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def order() -> Iterator[Order]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:
        assert nursery.stdin is not None and nursery.stdout is not None
        stdin, stdout = nursery.stdin, nursery.stdout

        def tell(
            folder: Path, *, seconds: float | None = None, call: int = 0, until: int | None = None, again: bool = False
        ) -> dict[str, Any]:
            words = {"folder": str(folder), "seconds": seconds, "call": call, "until": until, "again": again}
            stdin.write(json.dumps(words) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield tell
        stdin.close()
    assert nursery.returncode == 0


def test_writers_killed_at_random_instants(order: Order, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(11)
    logging.getLogger("deepseek_r1").propagate = True
    with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        last = 0
        for _ in range(20):
            told = order(tmp_path, seconds=rng.uniform(0.0, 0.06))
            assert told["killed"] and told["ended"] > last
            last = assert_whole(read_latest(tmp_path))
            assert told["ended"] <= last <= told["begun"] <= told["ended"] + 1, "at most one save is lost"
        with SavedRuns(tmp_path, keep=2) as runs:
            assert assert_whole(runs.latest()) == last
            names = {path.name for path in tmp_path.iterdir()}
            assert all(name.startswith("step-") or name == ".lock" for name in names), "what was left is gone"
    assert caplog.text == "", "nothing that could be seen was ever damaged"


@pytest.mark.parametrize("again", [False, True])
def test_writers_killed_before_every_call_to_the_system(order: Order, tmp_path: Path, again: bool) -> None:
    """Saving, pruning and replacing: after a kill at any call the newest checkpoint is the old or the new one."""
    start = tmp_path / "start"
    assert order(start, until=4)["ended"] == 4
    goal = 4 if again else 5
    seen = set()
    for call in range(1, 200):
        folder = tmp_path / str(call)
        shutil.copytree(start, folder)
        told = order(folder, call=call, until=goal, again=again)
        # A reader that doesn't lock may come between the two renames of a replacement, and finds the one before.
        reader = assert_whole(read_latest(folder))
        assert reader in ((3, 4) if again else (4, 5))
        with SavedRuns(folder, keep=2) as runs:
            newest = assert_whole(runs.latest())
            assert newest in (4, 5) and newest >= max(reader, told["ended"])
            assert all(path.name == ".lock" or path.name.startswith("step-") for path in folder.iterdir())
            for path in folder.glob("step-*"):
                assert_whole(read_saved(path, int(path.name[5:])))  # half of none, not of an older one either
            runs.save(6, {}, {})
            assert len(list(folder.glob("step-*"))) == 2
        if not told["killed"]:
            assert told["status"] == 0 and told["ended"] == goal
            break
        seen.add(newest)
    assert call > 20 and not told["killed"] and seen == ({4} if again else {4, 5})


FILES = ("tensors.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_every_byte_that_changes_is_found(name: str, tmp_path: Path) -> None:
    path = saved_twice(tmp_path)
    file = path / name
    whole = file.read_bytes()
    rng = random.Random(3)
    for place in range(len(whole)) if len(whole) < 400 else rng.sample(range(len(whole)), 100):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        assert assert_whole(read_latest(tmp_path)) == 1, place
    for length in {0, 1, len(whole) // 2, len(whole) - 1}:
        file.write_bytes(whole[:length])
        assert assert_whole(read_latest(tmp_path)) == 1, length
    file.write_bytes(whole + b" ")
    assert assert_whole(read_latest(tmp_path)) == 1
    file.write_bytes(whole)
    assert assert_whole(read_latest(tmp_path)) == 2


def test_files_that_are_missing_or_no_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved_twice(tmp_path)
    aside = tmp_path / "aside"
    logging.getLogger("deepseek_r1").propagate = True
    for name in FILES:
        file = path / name
        file.rename(aside)
        for put in (
            lambda: None,
            lambda f=file: f.symlink_to(aside),
            lambda f=file: os.mkfifo(f),
            lambda f=file: f.mkdir(),
        ):
            put()
            with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
                assert assert_whole(read_latest(tmp_path)) == 1
            assert "step-00000002 is damaged" in caplog.text and "Traceback" not in caplog.text
            caplog.clear()
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink(missing_ok=True)
        aside.rename(file)
    assert assert_whole(read_latest(tmp_path)) == 2
    shutil.rmtree(path)
    path.write_text("a file in a folder's place")
    assert assert_whole(read_latest(tmp_path)) == 1


def test_another_step_in_its_place(tmp_path: Path) -> None:
    path = saved_twice(tmp_path)
    shutil.copytree(path, tmp_path / "step-00000003")
    assert assert_whole(read_latest(tmp_path)) == 2


def test_all_are_damaged(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}/manifest.json").write_bytes(b"")
    with (
        SavedRuns(tmp_path) as runs,
        pytest.raises(CheckpointFolderError, match=r"all 2 checkpoints are damaged \(rest"),
    ):
        runs.latest()


HEADERS: dict[str, bytes] = {
    "no JSON": b"{]",
    "a list": b"[]",
    "metadata": b'{"__metadata__":{"a":"b"}}',
    "unknown type": b'{"w":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}',
    "past the end": b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "negative": b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "negative offset": b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "huge": b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
    "huge number": b'{"w":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}',
    "text": b'{"w":{"dtype":"F32","shape":"4","data_offsets":"04"}}',
    "deep": b'{"w":' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_tensors_with_a_right_digest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_twice(tmp_path)
    content = Content(3, {"w": torch.ones(1)}, {"step": 3})
    content._header = len(HEADERS[name]).to_bytes(8, "little") + HEADERS[name]
    (tmp_path / "step-00000003").mkdir()
    content.write(tmp_path / "step-00000003")
    assert assert_whole(read_latest(tmp_path)) == 2


@pytest.mark.parametrize("state", [b"[]", b"7", b"{", b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000, b"\xff"])
def test_hostile_state_with_a_right_digest(state: bytes, tmp_path: Path) -> None:
    saved_twice(tmp_path)
    content = Content(3, {}, {})
    content._state = state
    (tmp_path / "step-00000003").mkdir()
    content.write(tmp_path / "step-00000003")
    assert assert_whole(read_latest(tmp_path)) == 2


def assert_only_older_ones(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {".lock", "step-00000001", "step-00000002"}
    assert assert_whole(read_latest(folder)) == 2


def test_a_disk_without_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_twice(tmp_path)
    monkeypatch.setattr(saved_module, "disk_free", lambda folder: 2_000_000)
    with SavedRuns(tmp_path) as runs, pytest.raises(CapacityError) as caught:
        runs.save(3, {"w": torch.zeros(1_000_000)}, {})
    words = str(caught.value)
    needed = int(words.split("needs ")[1].split()[0])
    assert (
        4_000_000 < needed < 6_000_000 and f"{tmp_path}: the disk is full: step 3" in words and "2000000 are" in words
    )
    assert_only_older_ones(tmp_path)


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, CapacityError), (errno.EDQUOT, CapacityError), (errno.EIO, CheckpointFolderError)],
)
def test_a_disk_that_fails_at_every_turn(
    call: str, number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write, fsync, mkdir or rename fails: the older ones stay, no part is left, and the next save works."""
    saved_twice(tmp_path)
    real = getattr(os, call)
    with SavedRuns(tmp_path) as runs:
        for turn in range(1, 12):
            left = [turn]

            def failing(*arguments: Any, left: list[int] = left, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(number, os.strerror(number))
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing)
                try:
                    runs.save(3, {"w": torch.full((300,), 3.0), "n": torch.tensor(3)}, {"step": 3})
                except kind:
                    # The last fsync is that of the folder, when the new checkpoint is already in its place.
                    assert (tmp_path / "step-00000003").exists() == (call == "fsync" and turn == 5)
                else:
                    break
            if not (tmp_path / "step-00000003").exists():
                assert_only_older_ones(tmp_path)
        assert turn == {"write": 6, "fsync": 6, "mkdir": 2, "rename": 2}[call]
        assert assert_whole(runs.latest()) == 3


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        saved_twice(disk)
        with SavedRuns(disk) as runs:
            with pytest.raises(CapacityError, match="the disk is full: step 3 needs"):
                runs.save(3, {"w": torch.zeros(1_000_000)}, {})
            # As if the room had gone after it was looked at.
            monkeypatch.setattr(saved_module, "disk_free", lambda folder: 1 << 40)
            with pytest.raises(CapacityError, match="the disk is full: step 3 needs"):
                runs.save(3, {"w": torch.zeros(1_000_000)}, {})
            assert_only_older_ones(disk)
            runs.save(3, {"w": torch.full((300,), 3.0), "n": torch.tensor(3)}, {"step": 3})
        (disk / "filler").write_bytes(b"")
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                if filler.write(b"x" * 4096) < 4096:
                    raise OSError(errno.ENOSPC, "No space left on device")
        with SavedRuns(disk) as runs:
            assert assert_whole(runs.latest()) == 3, "a full disk can still be resumed from"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_old_ones_that_can_not_be_removed_cost_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("deepseek_r1").propagate = True
    real = os.rename
    with SavedRuns(tmp_path, keep=1) as runs:
        runs.save(1, {}, {"step": 1})

        def failing(source: Path, target: Path) -> None:
            if ".trash" in str(target):
                raise PermissionError(errno.EACCES, "Permission denied")
            real(source, target)

        monkeypatch.setattr(os, "rename", failing)
        with caplog.at_level(logging.WARNING, logger="deepseek_r1"):
            runs.save(2, {}, {"step": 2})
        assert len(caplog.records) == 1 and "can't be removed" in caplog.text
        monkeypatch.undo()
        runs.save(3, {}, {"step": 3})
        assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]


HOLDER = """
import sys
from deepseek_r1.train.saved import SavedRuns
with SavedRuns(sys.argv[1]) as runs:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_has(tmp_path: Path) -> None:
    (tmp_path / ".partial-step-00000009").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        writing = tmp_path / ".partial-step-00000010"
        writing.mkdir()
        with pytest.raises(CheckpointFolderError, match=rf"process {holder.pid} saves its run there \(end that run"):
            SavedRuns(tmp_path)
        assert writing.exists(), "what a live writer writes is let be"
        assert not (tmp_path / ".partial-step-00000009").exists()
        assert read_latest(tmp_path) is None, "readers need no lock"
        holder.kill()
    with SavedRuns(tmp_path) as runs:
        assert not writing.exists()
        with pytest.raises(CheckpointFolderError, match=f"process {os.getpid()} saves"):
            SavedRuns(tmp_path)
        runs.save(1, {}, {})
