"""Settings of evaluation: which suite, which model or server, how many answers to each problem."""

from __future__ import annotations

from typing import Literal

from deepseek_r1.config.base import option
from deepseek_r1.config.local import LocalModelConfig
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.core.registry import nearest

SUITES = ("reasoning", "multiple-choice", "gsm8k", "perplexity")

Choosing = Literal["letter", "text", "generated"]
"""How a model chooses: by the probability of a choice's letter, of its text, or by what it writes."""


class EvaluateConfig(LocalModelConfig):
    """What `deepseek-r1 evaluate` is told. Without `url` the model runs in this process."""

    suite: str = option(
        default="reasoning",
        help="what to ask: reasoning (procedural problems; :FAMILY,... takes some of the families), or what stands in "
        "--data: multiple-choice, gsm8k (questions with a number as answer), perplexity",
        metavar="SUITE[:FAMILY,...]",
    )
    data: str | None = option(
        default=None, help="file of the suite: JSON Lines; for perplexity also plain text", metavar="FILE"
    )
    level: int = option(default=1, help="how hard the problems of trained reasoning families are", minimum=1, maximum=4)
    count: int | None = option(
        default=None,
        help="problems of each reasoning family (default: 50); of a file the first so many records (default: all)",
        minimum=1,
        maximum=1_000_000,
    )
    samples: int = option(default=1, help="answers to each problem, whose mean is pass@1", minimum=1, maximum=1024)
    temperature: float = option(
        default=0.6, help="randomness of answers; 0 always takes the likeliest token", minimum=0, maximum=2
    )
    max_tokens: int = option(
        default=1024, help="tokens of an answer at most; one that is cut off is wrong", minimum=1, maximum=1_000_000
    )
    choices: Choosing = option(
        default="letter",
        help="multiple-choice: take the choice with the likeliest letter, the likeliest text (per byte), or the one "
        "that the generated answer names",
    )
    window: int | None = option(
        default=None, help="perplexity: tokens of a window (default: 1024, or the model's context)", minimum=2
    )
    stride: int | None = option(
        default=None,
        help="perplexity: tokens that each further window scores, the rest is context (default: half a window)",
        minimum=1,
    )
    adapter: str | None = option(default=None, help="PEFT adapter (LoRA) over the model", metavar="FOLDER")
    url: str | None = option(
        default=None, help="ask this OpenAI-compatible server instead (MODEL is its name there)", metavar="URL"
    )
    api_key: str | None = option(
        default=None, help="bearer token for --url", secret=True, env="DEEPSEEK_R1_API_KEY", metavar="KEY"
    )
    timeout: float = option(
        default=600.0, help="seconds a request to --url may stay silent", minimum=0.1, maximum=86_400
    )
    concurrency: int = option(default=16, help="answers in the making at a time", minimum=1, maximum=1024)
    seed: int = option(default=0, help="seed of problems and answers", minimum=0, maximum=2**63 - 1)
    out: str | None = option(
        default=None,
        help="folder for the answers, one by one, and the summary; answers that are there are not asked for again",
        metavar="FOLDER",
    )
    json: bool = option(default=False, help="print the summary as JSON")

    def check(self) -> None:
        """Besides the model's checks: a suite that is there, with what it needs and nothing that it can't use."""
        super().check()
        if self.suite_name not in SUITES:
            raise ConfigError(
                f"there is no suite {self.suite_name!r}{nearest(self.suite_name, list(SUITES))}",
                remedy=f"suites: {', '.join(SUITES)}",
            )
        if self.suite_name == "reasoning":
            if self.data is not None:
                raise ConfigError("the problems of reasoning are made, not read", remedy="leave out --data")
        elif ":" in self.suite:
            raise ConfigError(f"{self.suite_name} has no families", remedy=f"write --suite {self.suite_name}")
        elif self.data is None:
            raise ConfigError(f"{self.suite_name} needs a file", remedy="give --data FILE")
        if self.samples > 1 and not self.generates:
            raise ConfigError("several samples need answers that are generated", remedy="leave out --samples")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError("at temperature 0 all samples are the same", remedy="give a --temperature, or one sample")
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            raise ConfigError(
                f"stride {self.stride} leaves no context in windows of {self.window}", remedy="give a smaller --stride"
            )
        self._check_url()

    def _check_url(self) -> None:
        if self.url is None:
            return
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.url!r} is not an http address", remedy="write http://127.0.0.1:8080")
        if self.adapter is not None:
            raise ConfigError("an adapter is loaded over a model in this process", remedy="leave out --url")
        if not self.generates:
            remedy = "give a model's path" + ("" if self.suite_name == "perplexity" else ", or --choices generated")
            raise UnsupportedError("servers don't tell the log-probabilities of given text", remedy=remedy)

    @property
    def suite_name(self) -> str:
        """The suite without its families."""
        return self.suite.partition(":")[0]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that were named; none for all of them."""
        return tuple(dict.fromkeys(name.strip() for name in self.suite.partition(":")[2].split(",") if name.strip()))

    @property
    def generates(self) -> bool:
        """Whether answers are generated; else given text is scored by its log-probabilities."""
        return self.suite_name in ("reasoning", "gsm8k") or (
            self.suite_name == "multiple-choice" and self.choices == "generated"
        )
