from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.examples import Example
from deepseek_r1.data.packing import collate, pack_lengths


def first_fit_decreasing(lengths: list[int], capacity: int, most: int) -> list[list[int]]:
    """The textbook's quadratic way."""
    groups: list[list[int]] = []
    for length, index in sorted((-length, index) for index, length in enumerate(lengths)):
        for group in groups:
            if sum(lengths[other] for other in group) - length <= capacity and len(group) < most:
                group.append(index)
                break
        else:
            groups.append([index])
    return [sorted(group) for group in groups]


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(20, 50), st.integers(1, 8) | st.none())
def test_packing_is_first_fit_decreasing(lengths: list[int], capacity: int, most: int | None) -> None:
    groups = pack_lengths(lengths, capacity, most=most)
    assert groups == first_fit_decreasing(lengths, capacity, most or len(lengths) + 1)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= capacity for group in groups)
    if most is None and groups:
        # At most one group is half empty, as two such would have been one.
        assert len(groups) <= 2 * sum(lengths) / capacity + 1


def test_packing_by_hand() -> None:
    assert pack_lengths([], 10) == []
    assert pack_lengths([10], 10) == [[0]]
    assert pack_lengths([4, 6, 5, 5, 3, 7], 10) == [[4, 5], [0, 1], [2, 3]]
    assert pack_lengths([1] * 7, 10, most=3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_packing_many_is_fast() -> None:
    lengths = [1 + 7919 * index % 500 for index in range(20_000)]
    groups = pack_lengths(lengths, 1000)
    assert sum(lengths) / (1000 * len(groups)) > 0.99


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="sequence 1 has 11 tokens, more than the 10") as error:
        pack_lengths([3, 11], 10)
    assert error.value.remedy
    with pytest.raises(ConfigError, match="at most 0"):
        pack_lengths([3], 10, most=0)


def test_a_batch_by_hand() -> None:
    batch = collate(
        [
            Example((5, 6, 7), (False, True, False), ""),
            Example((8,), (False,), ""),
            Example((9, 10, 11, 12), (False, False, True, True), ""),
        ]
    )
    assert batch.lengths == (3, 1, 4)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert batch.targets.tolist() == [6, 7, 0, 0, 10, 11, 12, 0]
    assert batch.weights.tolist() == [1, 0, 0, 0, 0, 1, 1, 0]
    assert {tensor.dtype for tensor in (batch.input_ids, batch.positions, batch.targets)} == {torch.int64}
    assert batch.weights.dtype == torch.float32


SEQUENCES = st.lists(st.lists(st.tuples(st.integers(1, 1000), st.booleans()), max_size=8), max_size=8)


@given(SEQUENCES)
def test_no_target_crosses_a_border(sequences: list[list[tuple[int, bool]]]) -> None:
    examples = [Example(tuple(i for i, _ in s), tuple(t for _, t in s), "") for s in sequences]
    batch = collate(examples)
    assert len(batch.input_ids) == sum(batch.lengths)
    start = 0
    for example, length in zip(examples, batch.lengths, strict=True):
        part = slice(start, start + length)
        assert tuple(batch.input_ids[part].tolist()) == example.ids
        assert batch.positions[part].tolist() == list(range(length))
        if length:
            assert tuple(batch.targets[part].tolist()) == (*example.ids[1:], 0)
            assert tuple(batch.weights[part].tolist()) == (*map(float, example.trained[1:]), 0.0)
        start += length
