"""Training whose disk fills up, or that a user ends: what it goes on with afterwards is what it would have been."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.train.saved import read_latest
from deepseek_r1.train.supervised import Supervised
from support.small_runs import Refused, Settings, command, figures, outcome, status, train, whole_run, words

# --- the disk ---------------------------------------------------------------------------------------------------------


def fill(monkeypatch: pytest.MonkeyPatch, part: str, after: int) -> None:
    """No space for files with `part` in their path, once `after` writes to them have gone well."""
    real, done = os.write, [0]

    def write(descriptor: int, data: Any) -> int:
        if part in os.readlink(f"/proc/self/fd/{descriptor}"):
            done[0] += 1
            if done[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize(
    ("part", "after", "message"),
    [
        ("state.json", 2, r"checkpoints: the disk is full: step 3 needs \d+ bytes, \d+ are free"),
        ("metrics.jsonl", 2, "metrics.jsonl: the disk is full"),
    ],
)
def test_a_disk_that_fills_up_costs_no_step_that_was_saved(
    part: str, after: int, message: str, given: Settings, tmp_path: Path, refused: Refused
) -> None:
    whole = whole_run(given, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, part, after)
        told = refused(given, 1, message)
    assert str(tmp_path / "run") in told and "free space" in told
    assert status(given) == "failed"
    saved = read_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step == 2
    train(given)
    assert outcome(tmp_path / "run") == whole


def test_a_disk_with_no_space_at_all_says_so_once(
    given: Settings, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that ended the run is the one that is shown, though run.json can't be written either."""
    whole = whole_run(given, tmp_path)
    replace, full = os.replace, [False]

    def full_from_step_two(self: Supervised, step: int) -> dict[str, float]:
        full[0] = step == 1
        return {}

    def no_replace(source: Any, target: Any) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        fill(patch, "state.json", 1)
        patch.setattr(Supervised, "finished", full_from_step_two)
        patch.setattr(os, "replace", no_replace)
        refused(given, 1, "the disk is full: step 2 needs")
    train(given)
    assert outcome(tmp_path / "run") == whole and status(given) == "finished"


@pytest.mark.parametrize("name", ["recipe.json", "data.json", "data.svg", "adapter_config.json"])
def test_no_space_for_a_small_file(
    name: str, given: Settings, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = whole_run(given, tmp_path)
    plain = Path.write_text

    def write_text(self: Path, *arguments: Any, **options: Any) -> int:
        if name in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        refused(given, 1, r"(run/.*json|data.svg|result): can't be written: No space left on device: .*\d+ are free")
    train(given)
    assert outcome(tmp_path / "run") == whole


def test_no_space_for_the_report_costs_nothing_but_the_report(
    given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace, out = os.replace, tmp_path / "run"

    def no_replace(source: Any, target: Any) -> None:
        if "report" in Path(target).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_replace)
        train(given)
    told = [line for line in capsys.readouterr().err.splitlines() if "report" in line]
    assert len(told) == 1 and "its report is not written" in told[0] and "No space left on device" in told[0]
    assert status(given) == "finished" and (out / "result" / "adapter_config.json").exists()
    assert not list(out.glob("report*")) and not list(out.glob(".report*"))
    row = {"suite": "reasoning", "family": "gcd", "n": 200, "mean": 0.625, "low": 0.551, "high": 0.694}
    (out / "evaluation.json").write_text(json.dumps({"rows": [row]}))
    train(given)
    text = (out / "report.md").read_text()
    assert "| status | finished |" in text and "| gcd |" in text and "62.5 %" in text
    assert (out / "report.html").exists() and (out / "report-loss.svg").exists()


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size; skips where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user can't mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(given: Settings, tmp_path: Path, refused: Refused) -> None:
    whole = whole_run(given, tmp_path)
    size = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoints").rglob("*")) // 2
    with small_disk(tmp_path / "disk", (3 * size + (2 << 20)) >> 10) as disk:
        given |= {"out": str(disk / "run")}
        (disk / "filler").write_bytes(bytes((2 << 20) - size // 2))
        told = refused(given, 1, r"the disk is full: step \d needs \d+ bytes, \d+ are free")
        assert f"{disk}/run/checkpoints" in told
        (disk / "filler").unlink()
        train(given)
        assert outcome(disk / "run") == whole


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(
    number: signal.Signals, given: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is saved in between here: what it goes on from was saved because of the signal."""
    given |= {"steps": 12, "save_every": 1000}
    with subprocess.Popen(command(*words(given)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith('{"step"'):
                break
        process.send_signal(number)
        told, rest = process.communicate()
    assert process.returncode == 130 and told == ""
    assert "Traceback" not in rest and "ending after this step" in rest
    (step,) = map(int, re.findall(r"interrupted after step (\d+); the same command goes on from there", rest))
    assert 1 <= step < 12 and status(given) == "interrupted"
    saved = read_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step == step == len(figures(tmp_path / "run"))
    train(given)
    assert f"going on after step {step} of 12" in capsys.readouterr().err
    assert outcome(tmp_path / "run") == whole_run(given, tmp_path) and status(given) == "finished"


def test_a_second_ctrl_c_ends_at_once(
    given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_run(given, tmp_path)
    plain = Supervised.loss

    def loss(self: Supervised, batch: Any) -> Any:
        if (tmp_path / "run" / "checkpoints" / "step-00000002").exists():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the step went on")
        return plain(self, batch)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "loss", loss)
        assert main(["train", *words(given)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "Traceback" not in capsys.readouterr().err and status(given) == "interrupted"
    train(given)
    assert outcome(tmp_path / "run") == whole
