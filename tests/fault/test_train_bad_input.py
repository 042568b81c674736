"""Training whose data, model, folder, settings, numbers or reward are wrong: a clear error or a counted skip."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_r1.data.tasks import gym
from deepseek_r1.train import rewards
from deepseek_r1.train.saved import SavedRuns, read_latest
from deepseek_r1.train.saved_content import read_saved
from deepseek_r1.train.supervised import Supervised
from support.small_model import write_chats
from support.small_runs import Refused, Settings, figures, outcome, settings, status, train

# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "none.jsonl: cannot be read: No such file"),
        ("empty.jsonl", "", "empty.jsonl: holds no record"),
        ("blank.jsonl", "\n\n", "blank.jsonl: holds no record"),
        ("field.jsonl", '{"text": "a"}\n{"question": "a"}\n', r"field.jsonl:2: none of its fields \('question'\)"),
        ("half.jsonl", '{"prompt": "a"}\n', "half.jsonl:1: completion: is missing"),
        ("role.jsonl", '{"messages": [{"role": "robot", "content": "a"}]}\n', r"role.jsonl:1: messages\[0\].role"),
        ("cut.jsonl", '{"text": "a"}\n{"text": ', "cut.jsonl:2: not JSON"),
        ("bytes.jsonl", '{"text": "\udcff"}\n', "bytes.jsonl:1: not UTF-8"),
        ("silent.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "no example is left of 1"),
        ("data.csv", "a,b\n", "data.csv: not a data file"),
        ("odd.parquet", "no parquet", "odd.parquet: not a sound Parquet file"),
    ],
)
def test_a_data_file_that_is_none(
    name: str, content: str | None, message: str, given: Settings, tmp_path: Path, refused: Refused
) -> None:
    """The same command with the file mended is a new run: a mistake doesn't bind the folder."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    refused(given | {"data": [path]}, 1, message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    train(given | {"steps": 1})
    assert status(given) == "finished"


def test_examples_that_are_too_long(given: Settings, tmp_path: Path, refused: Refused) -> None:
    rows = (tmp_path / "chats.jsonl").read_text().splitlines()
    rows.insert(2, json.dumps({"prompt": "long", "completion": "x y z " * 90}))
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    given |= {"data": [tmp_path / "long.jsonl"], "steps": 2}
    refused(given | {"too_long": "error"}, 1, r"long.jsonl:3: \d+ tokens, more than max_length = 160")
    counts = {}
    for choice in ("skip", "truncate"):
        out = tmp_path / choice
        train(given | {"too_long": choice, "out": out})
        report = json.loads((out / "data.json").read_text())
        counts[choice] = report["counts"]["too_long"], report["counts"]["truncated"], report["examples"]
        assert report["lengths"]["max"] <= 160
    assert counts == {"skip": (1, 0, 40), "truncate": (0, 1, 41)}


def test_data_that_changed_before_a_resume(given: Settings, tmp_path: Path, refused: Refused) -> None:
    train(given)
    before, report = outcome(tmp_path / "run"), (tmp_path / "run" / "data.json").read_bytes()
    rows = (tmp_path / "chats.jsonl").read_text().splitlines()
    (tmp_path / "chats.jsonl").write_text("\n".join(rows[1:]))
    assert "restore the files" in refused(given, 2, "the data have changed since the run was started")
    assert (tmp_path / "run" / "data.json").read_bytes() == report, "the report stays that of the run's data"
    assert outcome(tmp_path / "run") == before and status(given) == "finished"
    write_chats(tmp_path / "chats.jsonl")
    train(given)
    assert outcome(tmp_path / "run") == before


# --- settings and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.002}, r"run holds a run with lr=0.001, not 0.002"),
        ({"steps": 5}, "steps=4, not 5"),
        ({"lora_r": 8}, "lora_r=4, not 8"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"adapter": False}, "adapter=True, not False"),
    ],
)
def test_another_setting_on_resume(
    change: Settings, message: str, given: Settings, tmp_path: Path, refused: Refused
) -> None:
    train(given)
    before = outcome(tmp_path / "run")
    assert "choose another out folder" in refused(given | change, 2, message)
    train(given | {"save_every": 3, "keep": 1, "most_bad_steps": 2})
    assert outcome(tmp_path / "run") == before, "what no weight depends on may change"


def test_another_torch_on_resume_is_named(given: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(given)
    recipe = tmp_path / "run" / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"torch": "1.0", "threads": 77}))
    with caplog.at_level("WARNING"):
        train(given)
    assert "begun with torch 1.0" in caplog.text and "begun with threads 77" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        train(given)
    assert "begun with" not in caplog.text, "the folder says what it went on with"


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_a_folder_whose_recipe_is_none(content: str, given: Settings, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(content, errors="surrogateescape")
    refused(given, 2, "recipe.json is not what a run wrote")


def test_models_and_adapters_that_are_none(given: Settings, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    refused(given | {"model": tmp_path / "missing"}, 1, "missing: no such file or directory")
    assert not (tmp_path / "run").exists()
    refused(given | {"model": tmp_path / "folder"}, 1, "folder")
    refused(given | {"start_from": tmp_path / "folder"}, 1, "adapter_config.json: file: cannot be read")
    refused(given | {"method": "distill", "teacher": tmp_path / "missing"}, 1, "missing: no such file or directory")
    refused(given | {"out": tmp_path / "file"}, 1, "file: File exists")
    train(given | {"steps": 1})
    wrong = tmp_path / "run" / "result" / "adapter_config.json"
    wrong.write_text(json.dumps(json.loads(wrong.read_text()) | {"use_dora": True}))
    refused(given | {"start_from": tmp_path / "run" / "result", "out": tmp_path / "next"}, 2, "use_dora is not built")


def test_all_checkpoints_damaged(given: Settings, tmp_path: Path, refused: Refused) -> None:
    train(given)
    newest, older = sorted((tmp_path / "run" / "checkpoints").glob("step-*"), reverse=True)
    before = outcome(tmp_path / "run")
    (newest / "state.json").write_text("{}")
    train(given)
    assert outcome(tmp_path / "run") == before, "it went on from the older one"
    for path in (newest, older):
        (path / "state.json").write_text("{}")
    refused(given, 1, "all 2 checkpoints are damaged")


def test_two_runs_in_one_folder(given: Settings, tmp_path: Path, refused: Refused) -> None:
    with SavedRuns(tmp_path / "run" / "checkpoints"):
        refused(given, 1, f"process {os.getpid()} saves its run there")
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    train(given)


@pytest.mark.parametrize(
    ("package", "change"),
    [("reasoning_gym", {"method": "grpo", "families": "gcd", "data": []}), ("pyarrow", {"data": ["x.parquet"]})],
)
def test_a_package_that_is_not_installed(
    package: str, change: Settings, given: Settings, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    gym._data_set.cache_clear()
    assert "pip install 'deepseek-r1-toolkit[train]'" in refused(given | change, 2, package.replace("_", "-"))


# --- numbers and rewards ----------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps (from 1) no number, and their gradients too."""
    plain, asked = Supervised.loss, Supervised.micro_batches
    now = [0]

    def micro_batches(self: Supervised, step: int) -> Any:
        now[0] = step + 1
        return asked(self, step)

    def loss(self: Supervised, batch: Any) -> Any:
        value, more = plain(self, batch)
        return (value * float("nan") if now[0] in steps else value), more

    monkeypatch.setattr(Supervised, "micro_batches", micro_batches)
    monkeypatch.setattr(Supervised, "loss", loss)


@pytest.mark.parametrize("schedule", ["cosine", "adaptive"])
def test_a_loss_that_is_no_number_is_counted_and_teaches_nothing(
    schedule: str, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 3})
    train(given | {"schedule": schedule, "keep": 10, "most_bad_steps": 3})
    lines = figures(tmp_path / "run")
    assert [line["bad_steps"] for line in lines] == [0, 1, 2, 2]
    assert [line["loss"] is None for line in lines] == [False, True, True, False]
    saved = [read_saved(tmp_path / "run" / "checkpoints" / f"step-{step:08d}", step).tensors for step in range(1, 5)]
    same = [all(torch.equal(one[name], other[name]) for name in one) for one, other in pairwise(saved)]
    assert same == [True, True, False], "neither weights nor the optimizer moved in the bad steps"


def test_a_run_without_numbers_ends(
    given: Settings, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 4, 5, 6, 7, 8})
    given |= {"steps": 8, "most_bad_steps": 3, "save_every": 2}
    told = refused(given, 1, "step 5: loss nan, gradient norm nan: no numbers, 3 steps in a row")
    assert "lower lr" in told and status(given) == "failed"
    saved = read_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step == 4 and saved.state["bad_steps"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.tensors.values())
    assert not (tmp_path / "run" / "result").exists()
    monkeypatch.undo()
    train(given)
    assert [line["bad_steps"] for line in figures(tmp_path / "run")] == [0, 0, 1, 2, 2, 2, 2, 2]


def test_a_reward_that_raises_is_counted(tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings("grpo", tmp_path, models_folder) | {"steps": 2, "updates": 1, "out": tmp_path / "run"}

    def faulty(problem: object, text: str, token_count: int, finished: bool) -> float:
        if token_count > 3:
            raise ZeroDivisionError("of the reward's own")
        return 0.5

    monkeypatch.setattr(rewards, "correct", faulty)
    train(given)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    for line in figures(tmp_path / "run"):
        of_step = [row for row in rows if row["step"] == line["step"]]
        assert line["reward_errors"] == sum(row["tokens"] > 3 for row in of_step) > 0
    assert status(given) == "finished"
