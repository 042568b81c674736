"""What goes into a trace and what comes out: reasoning-gym's item, and the text of the steps with the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """A task as reasoning-gym gives it. `metadata` names its parts (operands, names, target)."""

    question: str
    answer: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Derivation:
    """The steps, one a line, the last of which states the result, and the answer in the form that the scorer takes."""

    trace: str
    answer: str
