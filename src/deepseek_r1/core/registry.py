"""A registry of lazily imported implementations: name -> "module:attribute"."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from deepseek_r1.core.errors import UnsupportedError


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """The words " (did you mean 'x'?)" for the nearest known name, or "" when none is near."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


class Registry:
    """Names of one `kind` of thing, each bound to "module:attribute" and imported on first use."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str, target: str) -> None:
        """Register `target` ("module:attribute") under `name`; a name is registered once."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already, as {self._entries[name]!r}")
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for. Raises `UnsupportedError` for an unknown name."""
        if name not in self._entries:
            raise UnsupportedError(
                f"{self.kind} {name!r} is not supported{nearest(name, list(self._entries))}",
                remedy=f"supported: {', '.join(self)}",
            )
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
