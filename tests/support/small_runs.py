"""Training runs of a tiny model: their settings, their outcome, and the command that is killed until it gets there."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepseek_r1.cli.main import main
from deepseek_r1.config.train import TrainConfig
from deepseek_r1.train.run import RESULT
from support.small_model import small_model, write_chats

Settings = dict[str, Any]
Refused = Callable[..., str]
"""Starts a run that must fail with an exit code and words; returns what it said."""

KINDS = ("sft-adapter", "sft-all", "sft-adaptive", "grpo")
TIMES = ("seconds", "tokens_per_second")


def settings(kind: str, folder: Path, models_folder: Path) -> dict[str, Any]:
    """Settings of a short run that saves after every step; its data lie in `folder`."""
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


def config_of(given: Mapping[str, Any], out: Path) -> TrainConfig:
    """The settings of a run in the folder `out`."""
    return TrainConfig.from_mapping({**given, "out": str(out)})


def words(given: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    return [f"{name}={_word(value)}" for name, value in given.items()]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def command(*given: str) -> list[str]:
    """`deepseek-r1 train` in a process of its own."""
    return [sys.executable, "-m", "deepseek_r1.cli.main", "train", *given]


def figures(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def outcome(out: Path) -> tuple[str, list[dict[str, Any]]]:
    """The digest of the result's weights, and the figures of all steps without times."""
    (weights,) = (out / RESULT).glob("*.safetensors")
    kept = [{name: value for name, value in line.items() if name not in TIMES} for line in figures(out)]
    return hashlib.sha256(weights.read_bytes()).hexdigest(), kept


def train(given: Mapping[str, Any]) -> None:
    """A run through the command line, in this process, that goes well."""
    assert main(["train", *words(given)]) == 0


def status(given: Mapping[str, Any]) -> str:
    """How the run ended, as its folder says."""
    return str(json.loads((Path(given["out"]) / "run.json").read_text())["status"])


def whole_run(given: Mapping[str, Any], folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The outcome of the same run when nothing goes wrong."""
    train({**given, "out": folder / "whole"})
    return outcome(folder / "whole")


def killed_run(given: Mapping[str, Any], out: Path, draw: random.Random, *, early: float = 0.0) -> int:
    """Start the command again and again, killed at random instants, until it gets to its end; returns the kills.

    A share of `early` is killed while it starts, the others within a step or between two.
    """
    kills = 0
    while True:
        process = subprocess.Popen(
            command(*words({**given, "out": out})), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        if draw.random() < early:
            time.sleep(draw.random() * 3)
        else:
            # Most of the first seconds go by with imports: wait for the first step.
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
