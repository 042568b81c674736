"""The block pool never leaks: a state machine of everything that may be done to it, against a plain model of it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepseek_r1.core.errors import CapacityError
from deepseek_r1.engine.block_pool import BlockPool, block_hash

BLOCKS = 12


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4)
        self.held: list[list[int]] = []
        self.published: dict[bytes, int] = {}

    def references(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for run in self.held:
            for block in run:
                counts[block] = counts.get(block, 0) + 1
        return counts

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        before = self.references()
        if count > self.pool.available:
            with pytest.raises(CapacityError):
                self.pool.allocate(count)
            return
        run = self.pool.allocate(count)
        assert len(set(run)) == count
        assert not set(run) & set(before), "a block in use was given away"
        self.published = {key: block for key, block in self.published.items() if block not in run}
        self.held.append(run)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), min_size=4, max_size=4))
    def publish(self, data: st.DataObject, tokens: list[int]) -> None:
        block = data.draw(st.sampled_from([block for run in self.held for block in run]))
        key = block_hash(b"root", tokens)
        self.pool.publish(block, key)
        if key not in self.published and block not in self.published.values():
            self.published[key] = block

    @rule(chain=st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), max_size=3))
    def match(self, chain: list[list[int]]) -> None:
        keys = [block_hash(b"root", tokens) for tokens in chain]
        want = []
        for key in keys:
            if key not in self.published:
                break
            want.append(self.published[key])
        found = self.pool.match(keys)
        assert found == want
        self.held.append(found)

    @invariant()
    def consistent(self) -> None:
        self.pool.check()
        assert self.pool.used == len(self.references())
        assert self.pool.available == BLOCKS - self.pool.used

    def teardown(self) -> None:
        for run in self.held:
            self.pool.release(run)
        self.pool.check()
        assert self.pool.used == 0


TestBlockPool = PoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_release_twice_is_noticed() -> None:
    pool = BlockPool(2, 4)
    run = pool.allocate(1)
    pool.release(run)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(run)


def test_the_oldest_cached_block_goes_first_and_prefixes_last() -> None:
    pool = BlockPool(3, 1)
    run = pool.allocate(3)
    keys = [bytes([i]) for i in range(3)]
    for block, key in zip(run, keys, strict=True):
        pool.publish(block, key)
    pool.release(run)
    assert pool.cached == 3
    pool.allocate(1)
    assert pool.match(keys) == run[:2], "the tail of the run was reused, its beginning still matches"


def test_hash_depends_on_everything_before() -> None:
    first = block_hash(b"weights-a", [1, 2, 3, 4])
    assert first != block_hash(b"weights-b", [1, 2, 3, 4])
    assert block_hash(first, [5, 6, 7, 8]) != block_hash(block_hash(b"weights-a", [1, 2, 3, 5]), [5, 6, 7, 8])
