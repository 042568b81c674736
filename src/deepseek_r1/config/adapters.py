"""Low-rank adapters as users name them, NAME=FOLDER: shared by everything that loads a model with some."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from os import PathLike

from deepseek_r1.core.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
BASE = "default"
"""What requests call the model that the server was told to answer with: no adapter's name."""

METAVAR = "NAME=FOLDER"
NONE = "none"
"""Given in their place: the model alone, without the adapter that belongs to it."""

MOST_BYTES = 8 << 10
"""Of all names and folders: they reach the engine's process through a pipe that holds 64 KiB."""


def parse_adapters(given: Iterable[str]) -> dict[str, str]:
    """Folders by name, from texts such as "poet=/models/poet"; none from "none" alone.

    Raises `ConfigError` that quotes the text at fault.
    """
    texts = tuple(given)
    if texts == (NONE,):
        return {}
    adapters: dict[str, str] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or not folder:
            raise ConfigError(f"{text[:200]!r} names no adapter", remedy=f"write it as {METAVAR}")
        if name in adapters:
            raise ConfigError(
                f"two adapters are called {name!r}: {adapters[name]} and {folder}", remedy="give each a name of its own"
            )
        adapters[name] = folder
    return checked_adapters(adapters)


def checked_adapters(adapters: Mapping[str, str | PathLike[str]], base: str | None = None) -> dict[str, str]:
    """Folders by name, ~ resolved. Raises `ConfigError` for a name that can't be told from others, `base` among them.

    `base` is the id under which the model itself is served.
    """
    found: dict[str, str] = {}
    for name, given in adapters.items():
        folder = os.path.expanduser(given)
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name[:200]!r} is no name for the adapter in {folder}",
                remedy="use 1 to 64 letters, digits, - and _",
            )
        if name in (BASE, base):
            raise ConfigError(
                f"{name!r} is what the model itself is called, not the adapter in {folder}", remedy="use another name"
            )
        found[name] = folder
    size = sum(len(os.fsencode(f"{name}={folder}")) for name, folder in found.items())
    if size > MOST_BYTES:
        raise ConfigError(
            f"names and folders of {len(found)} adapters take {size} bytes, more than {MOST_BYTES}",
            remedy="load fewer adapters, or from shorter paths",
        )
    return found
