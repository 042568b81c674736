"""Sequences end to end instead of padding: which ones go together, and the tensors that a step reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.examples import Example


def pack_lengths(lengths: Sequence[int], capacity: int, *, most: int | None = None) -> list[list[int]]:
    """Indices of `lengths` in groups whose sum is at most `capacity`, by first-fit decreasing; at most `most` in each.

    The longest are placed first, equal ones in their order, each into the first group with room; a group's indices
    ascend. Takes O(n log n). Raises `ConfigError` for a length above `capacity`, and for a `most` below one.
    """
    if most is not None and most < 1:
        raise ConfigError(f"at most {most} sequences in a batch", remedy="allow one or more")
    if longest := max(lengths, default=0):
        _require_room(lengths, longest, capacity)
    # A tree over the groups: each node holds the most room below it, so that the first group with room is found fast.
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= lengths[index] else 2 * node + 1
        if node - leaves == len(groups):
            groups.append([])
        group = groups[node - leaves]
        group.append(index)
        room[node] = -1 if len(group) == most else room[node] - lengths[index]
        while node := node // 2:
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [sorted(group) for group in groups]


def _require_room(lengths: Sequence[int], longest: int, capacity: int) -> None:
    if longest > capacity:
        raise ConfigError(
            f"sequence {list(lengths).index(longest)} has {longest} tokens, more than the {capacity} of a batch",
            remedy="raise the tokens per batch, or lower max_length",
        )


@dataclass(frozen=True)
class Batch:
    """Sequences of these lengths end to end, (T,) each. Positions restart with every sequence.

    `targets[i]` is the token that follows token i in the same sequence (0 after the last one); `weights[i]` is 1.0
    where the loss asks for it, else 0.0.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    lengths: tuple[int, ...]


def collate(examples: Sequence[Example]) -> Batch:
    """The examples as one batch, in the order given; no target crosses from one into the next."""
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for example in examples:
        ids += example.ids
        positions += range(len(example.ids))
        targets += (*example.ids[1:], 0)[: len(example.ids)]
        weights += (*map(float, example.trained[1:]), 0.0)[: len(example.ids)]
    return Batch(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float32),
        lengths=tuple(len(example.ids) for example in examples),
    )
