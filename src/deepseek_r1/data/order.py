"""In which order examples are trained on: a function of seed and epoch alone, so a resumed run needs two numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.packing import pack_lengths

WINDOW = 64
"""Batches that are packed at a time: enough for a tight fit, few enough that chance decides what goes together."""

_EXAMPLES, _BATCHES = 0, 1


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The indices below `count` in an order drawn for this epoch, the same on every machine.

    Raises `ConfigError` unless seed and epoch are in [0, 2**64).
    """
    return _shuffled(count, seed, epoch, _EXAMPLES)


def batches(
    lengths: Sequence[int], *, seed: int, epoch: int, capacity: int, sequences_per_batch: int | None = None
) -> list[list[int]]:
    """The micro-batches of an epoch: indices of examples, each exactly once, at most `capacity` tokens in a batch.

    Examples are shuffled, packed in windows of about `WINDOW` batches, and the batches are shuffled again, as packing
    begins with the longest. A batch holds at most `sequences_per_batch` examples. A run that goes on from an epoch and
    the index of a batch calls this again. Raises what `epoch_order` and `pack_lengths` raise.
    """
    order = epoch_order(len(lengths), seed, epoch)
    packed: list[list[int]] = []
    window: list[int] = []
    tokens = 0
    for place, index in enumerate(order, 1):
        window.append(index)
        tokens += lengths[index]
        if tokens >= WINDOW * capacity or place == len(order):
            groups = pack_lengths([lengths[index] for index in window], capacity, most=sequences_per_batch)
            packed += [[window[index] for index in group] for group in groups]
            window, tokens = [], 0
    return [packed[index] for index in _shuffled(len(packed), seed, epoch, _BATCHES)]


def _shuffled(count: int, seed: int, epoch: int, purpose: int) -> list[int]:
    """Sorts by raw random words: their stream is fixed, while a generator's own shuffling may change with numpy."""
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 1 << 64:
            raise ConfigError(f"{name}: {value} is not in [0, 2**64)", remedy="give a whole number from 0 on")
    key = np.array([seed, epoch], dtype=np.uint64)
    source = np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], dtype=np.uint64))
    return [int(index) for index in np.argsort(source.random_raw(count), kind="stable")]
