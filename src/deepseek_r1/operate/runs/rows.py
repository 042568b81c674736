"""The rows of a run's files as types: what the trainer may write, and what readers take."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

import msgspec

MAX_STEP = 10**12
MAX_TEXT = 400_000
"""Characters kept of each text of a rollout: a line stays below `read.CHUNK_BYTES` in any script."""

_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}

Step = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)]


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the policy in RL. `parts` are the rewards that `reward` is made of; `finished`: not cut off.

    `tokens` is the answer's length; `error` says why the answer could not be scored, None where it was.
    """

    step: Step
    prompt: str = ""
    text: str = ""
    reward: float | None = None
    parts: dict[str, float | None] = {}
    advantage: float | None = None
    tokens: int = 0
    finished: bool = True
    family: str = ""
    level: int | float | str | None = None
    error: str | None = None


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of `n` problems with `samples` answers each, and its 95 % interval from `low` to `high`."""

    suite: str
    family: str = ""
    name: str = ""
    n: int
    samples: int = 1
    mean: float | None
    low: float | None = None
    high: float | None = None
    truncated: int = 0


class Evaluation(msgspec.Struct, frozen=True):
    """The content of evaluation.json."""

    rows: list[EvaluationRow]


class OnlyStep(msgspec.Struct, frozen=True):
    """Any row, of which only the step is asked."""

    step: Step


def disarmed(value: Any) -> Any:
    """`value` with all its texts made harmless to show: control characters as pictures, others that act replaced.

    Dicts and lists are gone through. Raises `RecursionError` for what is nested too deeply.
    """
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else _disarmed_text(value)
    if isinstance(value, dict):
        return {disarmed(name): disarmed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [disarmed(inner) for inner in value]
    if isinstance(value, msgspec.Struct):
        texts = {name: disarmed(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **texts)
    return value


def _disarmed_text(text: str) -> str:
    text = text.translate(_PICTURES)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if _acts(letter) else letter for letter in text)


def _acts(letter: str) -> bool:
    if letter in "\t\n":
        return False
    # DEL, C1 controls and surrogates; what XML can't hold; what lets a text show in another order than it has.
    return (
        unicodedata.category(letter) in ("Cc", "Cs")
        or letter in "\ufffe\uffff"
        or "\u202a" <= letter <= "\u202e"
        or "\u2066" <= letter <= "\u2069"
    )
