from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data import order
from deepseek_r1.data.order import batches, epoch_order

WORD = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 as its paper gives it (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3")."""
    c, k = list(counter), list(key)
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(two >> 64) ^ c[1] ^ k[0], two & WORD, (one >> 64) ^ c[3] ^ k[1], one & WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    return c


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (WORD, 12)])
def test_the_order_is_that_of_the_published_generator(seed: int, epoch: int) -> None:
    words = [word for block in range(1, 26) for word in philox([block, 0, 0, 0], [seed, epoch])]
    assert epoch_order(100, seed, epoch) == sorted(range(100), key=lambda index: words[index])


def test_orders_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(found) == list(range(50)) for found in orders)
    assert epoch_order(0, 1, 1) == [] and epoch_order(1, 1, 1) == [0]


@pytest.mark.parametrize(("seed", "epoch", "name"), [(-1, 0, "seed"), (0, -1, "epoch"), (1 << 64, 0, "seed")])
def test_seeds_outside_the_generators_range(seed: int, epoch: int, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        epoch_order(3, seed, epoch)


@given(
    st.lists(st.integers(1, 30), max_size=80), st.integers(0, WORD), st.integers(0, 9), st.none() | st.integers(1, 4)
)
def test_every_example_once_and_no_batch_too_full(lengths: list[int], seed: int, epoch: int, most: int | None) -> None:
    found = batches(lengths, seed=seed, epoch=epoch, capacity=30, sequences_per_batch=most)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(batch and sum(lengths[index] for index in batch) <= 30 for batch in found)
    assert most is None or all(len(batch) <= most for batch in found)
    assert found == batches(lengths, seed=seed, epoch=epoch, capacity=30, sequences_per_batch=most)


def test_batches_are_full_and_lengths_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1 + 7919 * index % 400 for index in range(4000)]
    found = batches(lengths, seed=1, epoch=0, capacity=2048)
    assert sum(lengths) / (2048 * len(found)) > 0.97
    assert found != batches(lengths, seed=1, epoch=1, capacity=2048)
    # Long examples come early in a window; over the epoch they must not.
    longest = [max(lengths[index] for index in batch) for batch in found]
    half = len(found) // 2
    assert abs(sum(longest[:half]) / half - sum(longest[half:]) / (len(found) - half)) < 25
    monkeypatch.setattr(order, "_shuffled", lambda count, *_: list(range(count)))
    sorted_ones = [max(lengths[i] for i in batch) for batch in batches(lengths, seed=1, epoch=0, capacity=2048)]
    assert sorted_ones[0] > sorted_ones[order.WINDOW - 1] + 25


def test_the_batches_of_an_epoch_are_the_same_everywhere() -> None:
    assert batches([3, 1, 4, 1, 5, 9, 2, 6], seed=7, epoch=3, capacity=12) == [[5, 0], [2, 6, 1], [7, 3, 4]]
