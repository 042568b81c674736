"""Settings of a training run: what a recipe's file holds, and `deepseek-r1 train RECIPE key=value` changes."""

from __future__ import annotations

from typing import Any

from deepseek_r1.config.base import Config, Option, option, read_file
from deepseek_r1.config.optimizer import OptimizerConfig
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.core.registry import nearest

METHODS = ("sft", "distill", "grpo")
SCHEDULES = ("cosine", "constant", "adaptive")


class TrainConfig(OptimizerConfig):
    """One training run. Nothing in it depends on the clock: the same settings and data give the same weights."""

    method: str = option(default="sft", help="what is learnt from: examples, a teacher, or rewards", choices=METHODS)
    model: str = option(default="default", help="model to start from: 'default', a folder, a file or a hub id")
    out: str = option(default="runs/latest", help="folder of the run: checkpoints, metrics, result", metavar="FOLDER")
    seed: int = option(default=0, help="of everything that is drawn", minimum=0, maximum=2**31 - 1)

    adapter: bool = option(default=True, help="train a low-rank adapter; else all weights")
    start_from: str | None = option(default=None, help="adapter to go on from (PEFT's files)", metavar="FOLDER")
    lora_r: int = option(default=16, help="rank of the adapter", minimum=1, maximum=4096)
    lora_alpha: float = option(default=32.0, help="the adapter's product counts alpha / r", minimum=0.0, maximum=1e6)
    lora_targets: tuple[str, ...] = option(
        default=("q_proj", "v_proj"), help="linears with an adapter, by the end of their names, or all-linear"
    )
    lora_dropout: float = option(
        default=0.1, help="share of an adapter's inputs that is dropped", minimum=0, maximum=0.9
    )
    base_precision: str = option(
        default="auto", help="format of the frozen weights beneath an adapter: auto, fp32, bf16, int8 or int4"
    )

    data: tuple[str, ...] = option(default=(), help="JSONL or Parquet files to learn from", metavar="FILE,...")
    train_on: str = option(
        default="assistant", help="what is learnt of a conversation", choices=("assistant", "last", "all")
    )
    max_length: int = option(default=1024, help="tokens of the longest example", minimum=2, maximum=1 << 20)
    too_long: str = option(
        default="skip", help="what becomes of longer examples", choices=("skip", "truncate", "error")
    )
    drop_duplicates: bool = option(default=False, help="leave out examples that are there already")
    batch_tokens: int = option(default=2048, help="tokens of a packed batch at most", minimum=2, maximum=1 << 22)
    batch_sequences: int | None = option(default=None, help="examples of a batch at most", minimum=1)

    epochs: float = option(default=1.0, help="how often all examples are gone through", minimum=1e-6, maximum=10_000)
    steps: int | None = option(default=None, help="steps in all; default: as many as the epochs have", minimum=1)
    schedule: str = option(default="cosine", help="course of the learning rate", choices=SCHEDULES)
    warmup: float = option(
        default=0.05, help="share of the steps with a rising learning rate", minimum=0.0, maximum=0.99
    )
    min_lr: float = option(default=3e-6, help="last learning rate of the cosine schedule", minimum=0.0, maximum=1.0)
    save_every: int = option(default=50, help="steps between checkpoints", minimum=1, maximum=10**9)
    keep: int = option(default=2, help="checkpoints that are kept", minimum=1, maximum=1000)
    most_bad_steps: int = option(
        default=10, help="steps in a row with a loss or gradient that is no number, after which the run ends", minimum=1
    )

    teacher: str | None = option(default=None, help="distill: the larger model", metavar="MODEL")
    hidden_share: float = option(
        default=0.3, help="distill: share of the hidden states' distance in the loss", minimum=0.0, maximum=1.0
    )
    teacher_layers: tuple[int, ...] = option(
        default=(), help="distill: layers of the teacher, one per layer of the student; default: evenly spread"
    )

    families: tuple[str, ...] = option(default=(), help="grpo: families of tasks; default: all trained ones")
    stages: tuple[int, ...] = option(
        default=(1, 2), help="grpo: stages in order, each with its reward", minimum=1, maximum=4
    )
    prompts: int = option(default=8, help="grpo: problems of a step", minimum=1, maximum=4096)
    group: int = option(default=8, help="grpo: answers to each problem", minimum=2, maximum=1024)
    answer_tokens: int = option(default=256, help="grpo: tokens of an answer at most", minimum=1, maximum=1 << 20)
    clip_low: float = option(default=0.2, help="grpo: how far the ratio may fall below 1", minimum=0.0, maximum=1.0)
    clip_high: float = option(default=0.28, help="grpo: how far the ratio may rise above 1", minimum=0.0, maximum=100.0)
    kl_weight: float = option(
        default=0.0, help="grpo: weight of the divergence from the policy at the start", minimum=0.0, maximum=100.0
    )
    entropy_weight: float = option(
        default=0.01, help="grpo: weight of the entropy in the loss, times the stage", minimum=0.0, maximum=10.0
    )
    updates: int = option(default=1, help="grpo: steps from the same answers", minimum=1, maximum=64)
    most_rounds: int = option(
        default=3, help="grpo: rounds of sampling in search of groups that disagree", minimum=1, maximum=100
    )

    def check(self) -> None:
        """What each method needs."""
        super().check()
        if self.method in ("sft", "distill") and not self.data:
            raise ConfigError(f"{self.method} needs data", remedy="name a JSONL or Parquet file: data=examples.jsonl")
        if self.method == "distill" and not self.teacher:
            raise ConfigError("distill needs a teacher", remedy="name the larger model: teacher=FOLDER")
        if self.method == "grpo" and self.steps is None:
            raise ConfigError("grpo needs a number of steps", remedy="for example steps=100")
        if self.method == "grpo" and not self.adapter:
            raise ConfigError("grpo trains an adapter", remedy="leave out adapter=false")
        if self.start_from is not None and not self.adapter:
            raise ConfigError("start_from names an adapter, and none is trained", remedy="leave out adapter=false")
        if self.max_length > self.batch_tokens:
            raise ConfigError(
                f"max_length {self.max_length} is more than batch_tokens {self.batch_tokens}",
                remedy="raise batch_tokens, or lower max_length",
            )
        if self.precision == "fp16" and self.adapter:
            raise ConfigError(
                "precision fp16 is for training all weights", remedy="use precision=bf16 or adapter=false"
            )


class TrainCommand(Config):
    """What `deepseek-r1 train` is told: a recipe, and what to change in it."""

    recipe: str | None = option(
        default=None, help="TOML or YAML file of settings; may be left out", metavar="RECIPE", positional=True
    )
    settings: tuple[str, ...] = option(
        default=(), help="settings that win over the recipe's", metavar="KEY=VALUE", positional=True
    )
    only_data: bool = option(default=False, help="report on the data, and train nothing")

    def resolved(self) -> TrainConfig:
        """The run's settings. Raises `ConfigError` for a word that is no setting or has a wrong value."""
        recipe, words = self.recipe, list(self.settings)
        if recipe is not None and "=" in recipe:  # no recipe: every word is a setting
            words.insert(0, recipe)
            recipe = None
        values = {} if recipe is None else read_file(recipe)
        specs = {spec.name: spec for spec in TrainConfig.options()}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals or name not in specs:
                near = nearest(name, list(specs))
                raise ConfigError(
                    f"{word!r} is no setting of a run{near}", remedy="write KEY=VALUE, as lr=1e-4, after the recipe"
                )
            values[name] = _value(specs[name], text)
        return TrainConfig.from_mapping(values)


def _value(spec: Option, text: str) -> Any:
    if spec.nullable and text.lower() in ("none", "null"):
        return None
    if spec.kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return spec.parsed(text)
