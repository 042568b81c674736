"""docs/train.md and docs/data.md say what the code does: recipes, rates, rewards, families of tasks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.data.tasks.families import OUTSIDE, describe
from deepseek_r1.scheduler import CosineWarmup
from deepseek_r1.train.rewards import STAGES, load_stage_specific_reward

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRAIN = (DOCS / "train.md").read_text(encoding="utf-8")
DATA = (DOCS / "data.md").read_text(encoding="utf-8")


def table(page: str, header: str) -> list[list[str]]:
    """The cells of all tables whose first line is `header`."""
    rows = [row for part in page.split(f"\n{header}\n")[1:] for row in part.split("\n\n", 1)[0].splitlines()[1:]]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def words(settings: dict[str, Any]) -> str:
    """A level's settings as the page says them."""
    parts = []
    for name, value in settings.items():
        kind, _, what = name.partition("_")
        if name == "operators":
            parts.append(f"`{' '.join(value)}`")
        elif kind == "min":
            most = settings[f"max_{what}"]
            parts.append(f"{what} {value:g}" if value == most else f"{what} {value:g} to {most:g}")
    return ", ".join(parts)


def test_recipes_are_settings() -> None:
    recipes = re.findall(r"^```toml\n(.*?)^```$", TRAIN + DATA, re.MULTILINE | re.DOTALL)
    assert recipes
    for recipe in recipes:
        TrainConfig.from_mapping(tomllib.loads(recipe))


def test_settings_and_their_defaults_are_those_of_the_configuration() -> None:
    rows = table(TRAIN, "| setting | default | meaning |")
    assert len(rows) > 5
    config = TrainConfig(data=("a.jsonl",))
    for name, default, _ in rows:
        if not name.startswith("`lora_r`"):
            value = getattr(config, name.strip("`"))
            said = ",".join(value) if isinstance(value, tuple) else str(value).lower().removesuffix("none")
            assert default.strip("`").removesuffix("none") == said, name
    assert (config.lora_r, config.lora_alpha, config.clip_low, config.clip_high) == (16, 32.0, 0.2, 0.28)
    assert (config.hidden_share, config.entropy_weight, config.most_rounds, config.stages) == (0.3, 0.01, 3, (1, 2))


def test_rates_are_those_of_the_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = CosineWarmup(optimizer)
    rows = table(TRAIN, "| epoch | rate |")
    assert len(rows) == 5
    for epoch, rate in rows:
        assert schedule.rate(float(epoch)) == pytest.approx(float(rate), rel=1e-12)


def test_stages_have_these_rewards() -> None:
    for stage, row in zip(STAGES, table(TRAIN, "| stage | reward |"), strict=True):
        parts = load_stage_specific_reward(stage).parts
        said = [part.name if part.weight == 1 else f"{part.weight} x {part.name}" for part in parts]
        assert row == [str(stage), " + ".join(said)]


def test_the_table_of_families_is_complete() -> None:
    rows = table(DATA, "| family | level 1 | level 2 | level 3 | level 4 | held out |")
    wanted = [
        [f"`{row['family']}`", *(words(settings) for settings in row["levels"].values()), row["held_out"]]
        for row in describe()
    ]
    assert rows == wanted
    assert all(f"`{family}`" in DATA for family in OUTSIDE)
