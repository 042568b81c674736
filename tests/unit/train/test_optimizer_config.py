"""The optimizer's settings: defaults, bounds, and formats that have no use for a loss scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.config.optimizer import OptimizerConfig, parse_scaling
from deepseek_r1.core.errors import ConfigError, UnsupportedError


def test_the_defaults() -> None:
    assert OptimizerConfig().to_dict() == {
        "precision": "fp32",
        "loss_scaling": None,
        "activation_checkpointing": False,
        "lr": 3e-4,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "clip_norm": 1.0,
        "accumulate": 1,
    }


def test_a_format_that_is_not_there_yet_says_what_to_use() -> None:
    with pytest.raises(UnsupportedError, match=r"'fp16_fp8_mixed' is not there yet.*precision='bf16'.*'fp16'"):
        OptimizerConfig(precision="fp16_fp8_mixed", loss_scaling=128, activation_checkpointing=True)


def test_the_ways_to_give_a_loss_scale(tmp_path: Path) -> None:
    for given, scaling in ((128, 128.0), (128.5, 128.5), ("128", 128.0), ("dynamic", "dynamic"), (None, None)):
        config = OptimizerConfig(precision="fp16", loss_scaling=given)
        assert config.scaling == scaling
        assert OptimizerConfig.from_mapping(config.to_dict()) == config
        assert config.update(lr=1e-3).scaling == scaling
    file = tmp_path / "optimizer.toml"
    file.write_text('precision = "fp16"\nloss_scaling = 1024\naccumulate = 16\n')
    assert OptimizerConfig.from_file(file).scaling == 1024.0
    (field,) = (spec for spec in OptimizerConfig.options() if spec.name == "loss_scaling")
    assert OptimizerConfig(precision="fp16", loss_scaling=field.parsed("256")).scaling == 256.0


def test_only_fp16_has_a_use_for_a_loss_scale() -> None:
    for precision in ("fp32", "bf16"):
        for scaling in (128, "dynamic"):
            with pytest.raises(ConfigError, match=f"no meaning in precision='{precision}'.*use precision='fp16'"):
                OptimizerConfig(precision=precision, loss_scaling=scaling)
        assert OptimizerConfig(precision=precision).scaling is None


@pytest.mark.parametrize("given", [0, 0.5, -1, 2**24 + 1, 10**400, "nan", "inf", "dynamically", "", True])
def test_what_is_no_loss_scale(given: Any) -> None:
    with pytest.raises(ConfigError, match="loss_scaling must be"):
        OptimizerConfig(precision="fp16", loss_scaling=given)
    with pytest.raises(ConfigError, match="loss_scaling must be"):
        parse_scaling(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0), ("lr", 1.5), ("lr", float("nan")), ("weight_decay", -0.1), ("weight_decay", 2.0), ("beta1", 1.0),
        ("beta1", -0.1), ("beta2", 1.0), ("eps", 0.0), ("clip_norm", 0.0), ("accumulate", 0), ("accumulate", 1.5),
        ("activation_checkpointing", 1), ("precision", 16),
    ],
)  # fmt: skip
def test_values_outside_their_bounds_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        OptimizerConfig(**{name: value})
    assert OptimizerConfig(clip_norm=None).clip_norm is None


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        OptimizerConfig(precision="bf61")
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        OptimizerConfig.from_mapping({"weight_decai": 0.1})


def test_it_imports_no_torch() -> None:
    code = "import sys, deepseek_r1.config.optimizer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
