"""The ways to guess tokens ahead, with the words for them: shared by everything that loads a model."""

from __future__ import annotations

from typing import Literal, get_args

from deepseek_r1.core.errors import ConfigError

Speculation = Literal["off", "mtp", "ngram"]
"""Who guesses tokens ahead: nobody, the model's own multi-token prediction module, or the request's own text."""

HELP = (
    "guess tokens ahead; the text stays what it would be without. ngram: where the request repeats itself, "
    "mtp: by the model's own prediction module"
)


def parse_speculation(value: object) -> Speculation:
    """`value` if it names a way to guess. Raises `ConfigError` for anything else."""
    for name in get_args(Speculation):
        if isinstance(value, str) and value == name:
            return name  # type: ignore[no-any-return]
    raise ConfigError(
        f"speculative must be one of {', '.join(get_args(Speculation))}, not {value!r}",
        remedy="write ngram to guess from the request's own text, mtp for the model's prediction module, or off",
    )
