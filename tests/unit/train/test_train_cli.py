from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.config.base import read_file
from deepseek_r1.config.train import TrainCommand, TrainConfig
from deepseek_r1.core.errors import ConfigError
from support.small_model import small_model, write_chats
from support.small_runs import figures, outcome, settings, words

LINE = {"step", "loss", "lr", "gradient_norm", "tokens", "tokens_per_second", "seconds", "bad_steps"}
"""What every step's line of metrics.jsonl has; on stderr it has `steps` and `seconds_left` beside."""
ROLLOUTS = {"clipped", "entropy", "reward", "pass_rate", "answer_tokens", "truncated", "reward_errors", "groups"}
ROLLOUTS |= {"groups_without_signal", "level", "stage"}


@pytest.fixture
def given(tmp_path: Path, models_folder: Path) -> dict[str, Any]:
    return {**settings("sft-adapter", tmp_path, models_folder), "steps": 3, "out": str(tmp_path / "run")}


def lines_of(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a run's stderr. `NaN` is no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines() if line.startswith("{")]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("batch_token=100", r"'batch_token=100' is no setting of a run \(did you mean 'batch_tokens'\?\)"),
        ("lr", "'lr' is no setting of a run"),
        ("lr=3", "lr must be a number from 1e-12 to 1.0, not 3.0"),
        ("lr=fast", "lr must be a number from 1e-12 to 1.0, not 'fast'"),
        ("lr=nan", "lr must be a number from 1e-12 to 1.0, not nan"),
        ("steps=0", r"steps must be an integer of at least 1 \(or none\), not 0"),
        ("lora_r=2.5", "lora_r must be an integer from 1 to 4096, not '2.5'"),
        ("adapter=perhaps", "adapter must be true or false, not 'perhaps'"),
        ("too_long=cut", "too_long must be one of skip, truncate, error, not 'cut'"),
        ("method=gpro", "method must be one of sft, distill, grpo, not 'gpro'"),
        ("stages=1,5", "stages must be a list of integers from 1 to 4"),
        ("max_length=4096", "max_length 4096 is more than batch_tokens 160"),
        ("precision=fp8", "precision='fp8' is not there yet"),
        ("precision=fp16", "precision fp16 is for training all weights"),
        ("data=", "sft needs data"),
        ("method=distill", "distill needs a teacher"),
        ("start_from=x adapter=false", "start_from names an adapter, and none is trained"),
        ("method=grpo steps=none", "grpo needs a number of steps"),
        ("method=grpo adapter=false", "grpo trains an adapter"),
        ("method=grpo families=gdc", "families: 'gdc' is not trained"),
        ("lora_targets=nothing", "targets: no linear is called 'nothing'"),
        ("base_precision=int5", "int5"),
        ("--lr=1", r"unknown option '--lr'"),
    ],
)
def test_what_is_no_setting_is_refused_before_anything_is_trained(
    said: str, message: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words(given), *said.split(" ")]) == 2
    told = capsys.readouterr()
    assert re.search(rf"^error: .*{message}", told.err, re.MULTILINE), told.err
    assert "Traceback" not in told.err and told.out == ""
    assert not (Path(given["out"]) / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.toml", "lr = 1e-4\nlearn = 3\n", "has no setting 'learn'"),
        ("r.toml", "lr = \n", "r.toml: "),
        ("r.yaml", "lr: [1", "r.yaml: "),
        ("r.yaml", "- lr", "r.yaml: must hold a table"),
        ("r.toml", "lr = 'fast'\n", "lr must be a number"),
        ("r.txt", "", "not a configuration file"),
        ("r.toml", None, "cannot be read: No such file"),
    ],
)
def test_a_recipe_that_is_none(
    name: str, content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["train", str(tmp_path / name), "data=x.jsonl"]) == 2
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)


def test_words_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('lr = 1e-4\nsteps = 5\ndata = ["a.jsonl"]\nclip_norm = 0.5\n')
    command = TrainCommand(recipe=str(recipe), settings=("steps=none", "clip_norm=None", "data=b.jsonl, c.jsonl"))
    assert command.resolved() == TrainConfig(lr=1e-4, data=("b.jsonl", "c.jsonl"), clip_norm=None)
    assert TrainCommand(recipe="data=a.jsonl", settings=("adapter=False",)).resolved().adapter is False
    with pytest.raises(ConfigError) as caught:
        TrainCommand(recipe="data=a.jsonl", settings=(str(recipe),)).resolved()
    assert "after the recipe" in caught.value.remedy
    assert read_file(recipe)["steps"] == 5, "the file stays"


# --- what a run shows -------------------------------------------------------------------------------------------------


def test_every_step_is_a_line_of_json(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words(given)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{given['out']}/result\n"
    lines = lines_of(told.err)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, kept in zip(lines, figures(Path(given["out"])), strict=True):
        assert set(line) == LINE | {"steps", "seconds_left"}
        assert line["steps"] == 3 and line["bad_steps"] == 0 and line["tokens"] > 0 and line["loss"] > 1
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert kept == {name: line[name] for name in LINE}
    assert lines[-1]["seconds_left"] == 0
    assert "records" in told.err and "[trained] tokens in brackets" in told.err
    assert main(["train", *words(given)]) == 0, "a finished run is finished again at once"
    told = capsys.readouterr()
    assert "going on after step 3 of 3" in told.err and lines_of(told.err) == []


def test_the_lines_of_rollouts(tmp_path: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings("grpo", tmp_path, models_folder) | {"steps": 2, "out": str(tmp_path / "run")}
    assert main(["train", *words(given)]) == 0
    lines = lines_of(capsys.readouterr().err)
    assert len(lines) == 2
    assert all(set(line) == LINE | ROLLOUTS | {"kl", "steps", "seconds_left"} for line in lines)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) % given["group"] == 0 and {row["step"] for row in rows} == {1}, "two updates from one sampling"


def shown_on_a_terminal(given: dict[str, Any], columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run shows where stderr is a terminal."""
    reader, screen = pty.openpty()
    attributes = termios.tcgetattr(screen)
    attributes[1] &= ~termios.OPOST  # bytes as they were written
    termios.tcsetattr(screen, termios.TCSANOW, attributes)
    with monkeypatch.context() as patch, io.TextIOWrapper(open(screen, "wb", buffering=0), write_through=True) as file:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stderr", file)
        assert main(["train", *words(given)]) == 0
    shown = b""
    with suppress(OSError):  # the system's word for the end
        while more := os.read(reader, 1 << 16):
            shown += more
    os.close(reader)
    return shown.decode()


def test_on_a_terminal_a_run_is_one_line(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on_a_terminal(given, 100, monkeypatch)
    assert "{" not in shown, "no JSON on a terminal"
    report, *bars = shown.split("\r\x1b[K")
    assert report.startswith("records") and len(bars) == 3
    pattern = r"\[#* *\] %d/3 loss \d+\.\d{4}, \d+ tokens/s, \d+:\d\d left"
    for step, bar in enumerate(bars, 1):
        assert re.fullmatch(pattern % step, bar.rstrip("\n")), bar
        assert len(bar.rstrip("\n")) < 100 and bar.count("#") == 8 * step
    assert bars[-1].endswith("\n") and not any(bar.endswith("\n") for bar in bars[:-1])


def test_a_narrow_terminal_gets_no_second_line(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bars = shown_on_a_terminal(given, 30, monkeypatch).split("\r\x1b[K")[1:]
    assert len(bars) == 3 and all(len(bar.rstrip("\n")) == 29 for bar in bars)


def test_only_data_trains_nothing_and_writes_nothing(
    tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    data = write_chats(tmp_path / "chats.jsonl")
    given = {"model": small_model(models_folder), "data": data, "max_length": 26, "batch_tokens": 160}
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "--only-data", *words(given)]) == 0
    told = capsys.readouterr()
    rows = dict(re.findall(r"^ *(\w[\w ,%]+?) {2,}([\d,]+)", told.out, re.MULTILINE))
    assert rows["records"] == "40" and int(rows["examples"]) + int(rows["left out, too long"]) == 40
    assert 0 < int(rows["left out, too long"]) < 40
    assert told.err == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["train", "--only-data", *words(given | {"method": "grpo", "steps": 1, "data": ""})]) == 2
    assert "no data file is named" in capsys.readouterr().err


def test_a_figure_that_is_no_number_is_null(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepseek_r1.train.supervised import Supervised

    plain = Supervised.loss
    monkeypatch.setattr(Supervised, "loss", lambda self, batch: (plain(self, batch)[0], {"odd": float("nan")}))
    assert main(["train", *words(given)]) == 0
    assert [line["odd"] for line in lines_of(capsys.readouterr().err)] == [None, None, None]
    assert [line["odd"] for line in figures(Path(given["out"]))] == [None, None, None]


def test_the_same_words_give_the_same_run(given: dict[str, Any], tmp_path: Path) -> None:
    assert main(["train", *words(given)]) == 0
    assert main(["train", *words(given | {"out": tmp_path / "again"})]) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "again")
    assert main(["train", *words(given | {"out": tmp_path / "other", "seed": 1})]) == 0
    assert outcome(tmp_path / "run") != outcome(tmp_path / "other")
