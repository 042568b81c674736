"""The table of verbs: its name, its words, its configuration class and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_r1.config.base import Config
from deepseek_r1.config.bench import BenchmarkConfig, RooflineConfig
from deepseek_r1.config.cache import CacheConfig
from deepseek_r1.config.chat import ChatConfig
from deepseek_r1.config.doctor import DoctorConfig
from deepseek_r1.config.evaluate import EvaluateConfig
from deepseek_r1.config.generate import GenerateConfig
from deepseek_r1.config.inspect import InspectConfig, ListConfig
from deepseek_r1.config.plan import PlanConfig
from deepseek_r1.config.pull import PullConfig
from deepseek_r1.config.runs import RolloutsViewConfig, RunReportConfig, RunViewConfig
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.config.train import TrainCommand


@dataclass(frozen=True)
class Verb:
    """`words` as typed after the program's name; `target` is "module:function", imported when it runs."""

    words: tuple[str, ...]
    help: str
    config: type[Config]
    target: str
    log_level: str = "WARNING"


VERBS = (
    Verb(
        ("serve",),
        "serve a model over HTTP, OpenAI-compatible, with a chat page",
        ServeConfig,
        "deepseek_r1.cli.serve:serve",
        log_level="INFO",
    ),
    Verb(("chat",), "chat with a model in the terminal", ChatConfig, "deepseek_r1.cli.chat:chat"),
    Verb(("generate",), "continue one prompt", GenerateConfig, "deepseek_r1.cli.generate:generate"),
    Verb(
        ("train",),
        "train a model, or an adapter over it, as a recipe says: from examples, a teacher or rewards",
        TrainCommand,
        "deepseek_r1.cli.train:train",
    ),
    Verb(("models", "list"), "list the models on this machine", ListConfig, "deepseek_r1.cli.models:list_models"),
    Verb(
        ("models", "inspect"),
        "describe a model: its architecture, configuration, tensors and sizes",
        InspectConfig,
        "deepseek_r1.cli.models:inspect_model",
    ),
    Verb(
        ("models", "pull"),
        "fetch a model from the hub: what serving needs, verified, resumed where it was cut off",
        PullConfig,
        "deepseek_r1.cli.models:pull_model",
    ),
    Verb(
        ("cache", "list"),
        "list the packed weights that are kept for quick starts",
        CacheConfig,
        "deepseek_r1.cli.cache:list_cache",
    ),
    Verb(
        ("cache", "clear"),
        "remove the packed weights that are kept for quick starts",
        CacheConfig,
        "deepseek_r1.cli.cache:clear_cache",
    ),
    Verb(
        ("plan",),
        "say what a model would take on a machine, and how fast it could be, without its weights",
        PlanConfig,
        "deepseek_r1.cli.plan:plan_model",
    ),
    Verb(
        ("runs", "view"),
        "look at a training run while it goes on: curves, rollouts and evaluation on a page",
        RunViewConfig,
        "deepseek_r1.cli.runs:view_run",
    ),
    Verb(
        ("runs", "report"),
        "write a run's report into its folder, as one HTML page and as Markdown",
        RunReportConfig,
        "deepseek_r1.cli.runs:report_run",
    ),
    Verb(
        ("rollouts", "view"),
        "print what the model wrote in reinforcement learning, with its rewards",
        RolloutsViewConfig,
        "deepseek_r1.cli.runs:view_rollouts",
    ),
    Verb(("doctor",), "check this machine, and say how to mend it", DoctorConfig, "deepseek_r1.cli.doctor:doctor"),
    Verb(
        ("evaluate",),
        "say what a model or a server can do: reasoning, multiple choice, numbers as answers, perplexity",
        EvaluateConfig,
        "deepseek_r1.cli.evaluate:evaluate",
    ),
    Verb(
        ("benchmark",),
        "measure throughput, time to first token and inter-token latency, or compare with other engines",
        BenchmarkConfig,
        "deepseek_r1.cli.benchmark:benchmark",
    ),
    Verb(
        ("roofline",),
        "say how near a model comes to the machine's limits: read bandwidth, and operations per second",
        RooflineConfig,
        "deepseek_r1.cli.roofline:roofline",
    ),
)

GROUPS = {
    "models": "list, describe and fetch models",
    "cache": "show and empty the cache of packed weights",
    "runs": "look at training runs",
    "rollouts": "look at what a model wrote in training",
}
"""Words that only group verbs."""
