"""Progressive reinforcement learning in one call: stages in order, each with its own reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.train.rewards import Reward, RewardFunction
from deepseek_r1.train.run import RESULT, prepare


def progressive_rl_training(
    model: str = "default",
    *,
    out: str,
    steps: int,
    stages: Sequence[int] = (1, 2, 3, 4),
    reward: Reward | RewardFunction | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda line: None,
    **settings: Any,
) -> Path:
    """Train an adapter by rewards, `stages` sharing out the `steps`; returns the folder of the adapter.

    Each stage has its own reward (`train.rewards.load_stage_specific_reward`), unless a `reward` of your own is given,
    and an entropy bonus of 0.01 times the stage. `tell` is called with the figures of every step; `settings` are those
    of `TrainConfig`. Called again with the same settings it goes on where an earlier call was interrupted. Raises
    `ConfigError` for settings that make no run, and what loading the model raises.
    """
    config = TrainConfig(method="grpo", model=model, out=out, steps=steps, stages=tuple(stages), **settings)
    run = prepare(config, reward=reward)
    for line in run.train():
        tell(line)
    return run.folder / RESULT
