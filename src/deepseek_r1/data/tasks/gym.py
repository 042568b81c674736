"""The door to reasoning-gym: its data sets by family, settings and seed, and its scorers. Imported when first used."""

from __future__ import annotations

import hashlib
import importlib
import json
from functools import lru_cache
from typing import Any

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.data.tasks.item import Item


def item(family: str, settings: str, stream: tuple[int, int], index: int) -> Item | None:
    """Item `index` of the data set of `family` with `settings` (JSON) for `stream` (level, seed).

    None where reasoning-gym gives up on an item. Raises `UnsupportedError` where the library isn't installed.
    """
    try:
        raw = _data_set(family, settings, stream)[index]
    except ValueError:  # it found no countdown within its limits
        return None
    return Item(raw["question"], raw["answer"], raw["metadata"])


def reward(family: str, answer: str, of: Item) -> float:
    """What reasoning-gym's own scorer of `family` gives `answer`. It may raise on an answer of another form."""
    entry = {"question": of.question, "answer": of.answer, "metadata": of.metadata}
    return float(_data_set(family, "{}", (0, 0)).score_answer(answer, entry))


@lru_cache(maxsize=256)
def _data_set(family: str, settings: str, stream: tuple[int, int]) -> Any:
    try:
        library = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise UnsupportedError(
            f"reasoning tasks need reasoning-gym: {error}", remedy="pip install 'deepseek-r1-toolkit[train]'"
        ) from None
    # The library seeds an item with seed + index, so near seeds would share items.
    digest = hashlib.sha256(f"{family} {stream[0]} {stream[1]}".encode()).digest()
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(settings).items()}
    return library.create_dataset(family, seed=int.from_bytes(digest[:6]), **options)
