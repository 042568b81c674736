"""A run that is killed and started again ends with the weights, and the figures, of one that never was."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.train.run import RESULT, prepare
from support.small_model import small_model, write_chats

KINDS = ("sft-adapter", "sft-all", "sft-adaptive", "grpo")
TIMES = ("seconds", "tokens_per_second")


def settings(kind: str, folder: Path, models_folder: Path) -> dict[str, Any]:
    common = {"model": str(small_model(models_folder)), "save_every": 1, "keep": 2, "lr": 1e-3}
    data = [str(write_chats(folder / "chats.jsonl"))]
    if kind == "grpo":
        small = {"families": ["chain_sum", "gcd"], "prompts": 2, "group": 3, "answer_tokens": 12, "most_rounds": 2}
        more = {"updates": 2, "steps": 6, "lora_targets": ["all-linear"], "kl_weight": 0.01, "stages": [1, 3]}
        return common | small | more | {"method": "grpo", "lora_r": 4, "batch_tokens": 1024}
    batches = {"data": data, "batch_tokens": 160, "max_length": 160, "accumulate": 2, "steps": 8}
    if kind == "sft-all":
        return common | batches | {"adapter": False, "activation_checkpointing": True}
    lora = {"lora_r": 4, "lora_targets": ["all-linear"], "lora_dropout": 0.2, "base_precision": "int8"}
    return common | batches | lora | ({"schedule": "adaptive"} if kind == "sft-adaptive" else {})


def config_of(given: dict[str, Any], out: Path) -> TrainConfig:
    return TrainConfig.from_mapping(given | {"out": str(out)})


def outcome(out: Path) -> tuple[str, list[dict[str, Any]]]:
    """The digest of the result's weights, and the figures of all steps without times."""
    (weights,) = (out / RESULT).glob("*.safetensors")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return hashlib.sha256(weights.read_bytes()).hexdigest(), kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_pieces_is_the_whole_run(kind: str, tmp_path: Path, models_folder: Path) -> None:
    """Stopped after each step and prepared again from its folder."""
    given = settings(kind, tmp_path, models_folder)
    whole = prepare(config_of(given, tmp_path / "whole"))
    lines = list(whole.train())
    assert whole.finished and len(lines) == given["steps"]
    pieces = 0
    while True:
        run = prepare(config_of(given, tmp_path / "pieces"))
        assert run.resumed_at == pieces
        if run.finished:
            break
        steps = iter([False])
        for _ in run.train(lambda steps=steps: next(steps, True)):
            pieces += 1
    list(run.train())
    assert pieces == given["steps"]
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


def killed_run(given: dict[str, Any], out: Path, recipe: Path, draw: random.Random) -> int:
    """Start the command again and again, killed at random instants, until it gets to its end; returns the kills."""
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (given | {"out": str(out)}).items()))
    command = [sys.executable, "-m", "deepseek_r1.cli.main", "train", str(recipe)]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # Most of the first seconds go by with imports: kill from the first step on, at any moment of it.
        assert process.stderr is not None
        began = process.stderr.readline()
        while began and not began.startswith(b'{"step"'):
            began = process.stderr.readline()
        time.sleep(draw.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[1]
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, rest.decode()
        kills += 1


def test_kill_9_changes_nothing(tmp_path: Path, models_folder: Path) -> None:
    given = settings("sft-adapter", tmp_path, models_folder)
    list(prepare(config_of(given, tmp_path / "whole")).train())
    kills = killed_run(given, tmp_path / "killed", tmp_path / "recipe.toml", random.Random(1))
    assert kills >= 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
