"""DeepSeek-R1 toolkit: one policy for training, rollouts, compression and serving. Names resolve on first use."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from deepseek_r1.core.version import __version__

# Before torch brings libgomp in: a thread that spins at a barrier for milliseconds holds the core that the thread it
# waits for needs. Where anything else runs beside us, steps then take 10 times as long (docs/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from deepseek_r1.config.optimizer import OptimizerConfig as OptimizerConfig
    from deepseek_r1.config.precision import DeepSeekConfig as DeepSeekConfig
    from deepseek_r1.serve.deployer import Deployer as Deployer
    from deepseek_r1.serve.local import DeepSeekModel as DeepSeekModel
    from deepseek_r1.train.adaptive import AdaptiveOptimizer as AdaptiveOptimizer
    from deepseek_r1.train.progressive import progressive_rl_training as progressive_rl_training

_EXPORTS = {
    "AdaptiveOptimizer": "deepseek_r1.train.adaptive",
    "DeepSeekConfig": "deepseek_r1.config.precision",
    "DeepSeekModel": "deepseek_r1.serve.local",
    "Deployer": "deepseek_r1.serve.deployer",
    "OptimizerConfig": "deepseek_r1.config.optimizer",
    "layers": "",
    "progressive_rl_training": "deepseek_r1.train.progressive",
    "scheduler": "",
}

__all__ = [
    "AdaptiveOptimizer",
    "DeepSeekConfig",
    "DeepSeekModel",
    "Deployer",
    "OptimizerConfig",
    "__version__",
    "layers",
    "progressive_rl_training",
    "scheduler",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'deepseek_r1' has no attribute {name!r}; it exports {', '.join(__all__)}")
    home = _EXPORTS[name]
    value = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"deepseek_r1.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
