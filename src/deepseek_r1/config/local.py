"""Settings shared by everything that runs a model in its own process: which model, which precision, how to sample."""

from __future__ import annotations

from typing import Any

from deepseek_r1.config.adapters import METAVAR, parse_adapters
from deepseek_r1.config.base import Config, option
from deepseek_r1.config.precision import PRECISION_HELP, PRECISION_METAVAR, parse_precision
from deepseek_r1.config.speculation import HELP, Speculation


class LocalModelConfig(Config):
    """Which model to load, and how."""

    model: str = option(
        default="default",
        help="'default' (the embedded model), a folder, a GGUF or safetensors file, or a hub id",
        metavar="MODEL",
        positional=True,
    )
    precision: str = option(
        default="auto",
        help=PRECISION_HELP,
        metavar=PRECISION_METAVAR,
    )
    memory: int | None = option(
        default=None,
        help="memory for weights and caches (as 4GiB); default: half of what is free",
        minimum=1,
        size=True,
    )
    speculative: Speculation = option(default="off", help=HELP)

    def check(self) -> None:
        """Refuse precisions that are not there."""
        parse_precision(self.precision)


class SamplingConfig(LocalModelConfig):
    """How tokens are chosen. The defaults are those DeepSeek recommends for R1."""

    max_tokens: int | None = option(
        default=None, help="tokens to generate at most; default: the remaining context", minimum=1
    )
    temperature: float = option(
        default=0.6, help="randomness; 0 always takes the likeliest token", minimum=0, maximum=2
    )
    top_p: float = option(
        default=0.95, help="sample from the likeliest tokens that sum to this probability", minimum=0, maximum=1
    )
    top_k: int = option(default=0, help="sample from this many likeliest tokens; 0 for all", minimum=0)
    min_p: float = option(
        default=0.0, help="drop tokens below this fraction of the likeliest one's probability", minimum=0, maximum=1
    )
    seed: int | None = option(
        default=None, help="the same seed gives the same text; default: drawn at random", minimum=0, maximum=2**63 - 1
    )
    stop: tuple[str, ...] = option(default=(), help="stop before this text; may be given several times", metavar="TEXT")
    adapter: str | None = option(
        default=None,
        help="low-rank adapter in PEFT's files to answer with; without it the default model has its own, r1-lite, and "
        "with 'none' it has none",
        metavar=METAVAR,
    )

    def check(self) -> None:
        """Refuse precisions that are not there, and adapters without a name or a folder."""
        super().check()
        parse_adapters(self._named)

    @property
    def adapters(self) -> dict[str, str]:
        """The folder of the adapter by its name, {} without one and for "none"."""
        return parse_adapters(self._named)

    @property
    def _named(self) -> tuple[str, ...]:
        return () if self.adapter is None else (self.adapter,)

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling fields by the names `DeepSeekModel.generate` and `.chat` take; unset ones are left out."""
        fields = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        given |= {"stop": list(self.stop)} if self.stop else {}
        for name in self.adapters:
            given["model"] = name
        return given
