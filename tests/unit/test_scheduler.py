"""How many tokens a step has: all that it may where prompts are alone, half where a stream waits beside them."""

from __future__ import annotations

import pytest

from deepseek_r1.engine.block_pool import BlockPool
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.engine.scheduler import Scheduler
from deepseek_r1.engine.sequence import Sequence


def prompt(name: str, length: int) -> Sequence:
    request = GenerateRequest(name, list(range(length)), SamplingParams(5))
    return Sequence(request, [], frozenset(), name.encode(), 4)  # a cache key of its own: no shared prefixes


def step(scheduler: Scheduler) -> list[tuple[str, int]]:
    """One step's work as (request, tokens); those that are ready get a token."""
    work = scheduler.schedule()
    for item in work:
        if item.samples:
            item.sequence.tokens.append(7)
        scheduler.computed(item)
    return [(item.sequence.id, item.count) for item in work]


def test_a_stream_halves_the_steps_of_prompts_beside_it() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4, 40)
    scheduler.waiting += [prompt("long", 90)]
    assert step(scheduler) == [("long", 40)]
    assert step(scheduler) == [("long", 40)]
    assert step(scheduler) == [("long", 10)]
    scheduler.waiting += [prompt("next", 50)]
    assert step(scheduler) == [("long", 1), ("next", 19)]
    assert step(scheduler) == [("long", 1), ("next", 19)]
    scheduler.finish(scheduler.running[0])
    assert step(scheduler) == [("next", 12)]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_every_stream_gets_its_token_where_the_step_has_room(most: int) -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4, most)
    scheduler.waiting += [prompt(str(i), 1) for i in range(4)]
    for _ in range(8):
        done = step(scheduler)
        assert 1 <= sum(count for _, count in done) <= most
    assert len(done) == min(4, most)
