"""Guesses from a request's own text: by their definition, bounded in cost, and given up where they are wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.config.speculation import parse_speculation
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.engine import drafts
from deepseek_r1.engine.block_pool import BlockPool
from deepseek_r1.engine.drafts import LONGEST, MOST_DRAFTS, START, Lookup, check_speculation
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.engine.scheduler import Scheduler, Work
from deepseek_r1.engine.sequence import Sequence


def common(tokens: list[int], end: int, at: int) -> int:
    """How many tokens up to `end` are those up to `at`, counted to 4."""
    return max(n for n in range(5) if n <= end + 1 and tokens[end + 1 - n : end + 1] == tokens[at + 1 - n : at + 1])


def by_definition(tokens: list[int], output: int, most: int) -> tuple[int, ...]:
    """The guess after `tokens`, from a look at everything for every token."""
    chances = {2: START[2], 3: START[3], 4: START[4], 8: START[8]}

    def grade(length: int) -> int:
        return max(least for least in chances if least <= length)

    place, length = 0, 0
    for at in range(max(output - 1, 0), len(tokens)):
        if length and tokens[place] == tokens[at]:
            chances[grade(length)] += (1 - chances[grade(length)]) / 8
            place, length = (place + 1, length + 1) if length >= 4 else (0, 0)
        elif length:
            chances[grade(length)] -= chances[grade(length)] / 8
            place, length = 0, 0
        if not length:
            ends = [end for end in range(at - 1, 0, -1) if tokens[end - 1 : end + 1] == tokens[at - 1 : at + 1]][:16]
            if ends:
                length, end = max((common(tokens, end, at), end) for end in ends)
                place = end + 1
    chance, extended = 1.0, list(tokens)
    while length and len(extended) - len(tokens) < most:
        chance *= chances[grade(length + len(extended) - len(tokens))]
        if chance < 0.3 or len(extended) - len(tokens) == 10:
            break
        extended.append(extended[place + len(extended) - len(tokens)])
    return tuple(extended[len(tokens) :])


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Tokens of a few kinds, with passages that come again."""
    tokens = draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(tokens) - 1))
        tokens = (
            tokens + tokens[start : start + draw(st.integers(1, 20))] + draw(st.lists(st.integers(0, 5), max_size=3))
        )
    return tokens


@settings(max_examples=400, deadline=None, derandomize=True)
@given(tokens=texts(), data=st.data())
def test_guesses_are_those_of_the_definition(tokens: list[int], data: st.DataObject) -> None:
    """Whether the index is asked after every token, as one without guesses is, or after some, as guesses make it."""
    output = data.draw(st.integers(1, len(tokens)))
    grown = tokens[:output]
    lookup = Lookup(grown, output)
    for token in [*tokens[output:], None]:
        if token is None or data.draw(st.booleans()):
            most = data.draw(st.integers(0, 12))
            assert lookup.guess(most) == by_definition(grown, output, most)
        if token is not None:
            grown.append(token)


def follow(prompt: list[int], answer: list[int]) -> tuple[int, int, int]:
    """(steps, guesses computed, guesses right) of an answer that is known beforehand."""
    tokens = [*prompt, answer[0]]
    lookup = Lookup(tokens, len(prompt))
    steps = drafted = right = 0
    while (made := len(tokens) - len(prompt)) < len(answer):
        guesses = lookup.guess(len(answer) - made - 1)
        good = next((i for i, guess in enumerate(guesses) if guess != answer[made + i]), len(guesses))
        tokens += answer[made : made + good + 1]
        steps, drafted, right = steps + 1, drafted + len(guesses), right + good
    return steps, drafted, right


def test_a_copy_takes_few_steps() -> None:
    passage = random.Random(0).sample(range(1000), 400)
    steps, drafted, right = follow(passage, passage[50:350])
    assert drafted == right and steps < 300 / (MOST_DRAFTS + 1) + 8


def test_a_copy_with_changed_words_still_does() -> None:
    passage = random.Random(1).sample(range(1000), 400)
    answer = [2000 if place % 25 == 24 else token for place, token in enumerate(passage)]
    steps, drafted, right = follow(passage, answer)
    assert steps < len(answer) / 3 and right > 0.7 * drafted


def test_what_never_comes_again_costs_a_bounded_number_of_guesses() -> None:
    """The same pair again and again, and every time it goes on otherwise: the first guess is the last one."""
    answer = [token for fresh in range(10, 400) for token in (1, 2, fresh)]
    _, drafted, right = follow([1, 2, 3], answer)
    assert (drafted, right) == (1, 0)


@pytest.mark.parametrize("length", range(2, 12))
def test_passages_that_break_off_cost_nothing(length: int) -> None:
    """Passages come again and go on otherwise where they end: what is right pays for what is wrong."""
    answer = [token for fresh in range(100, 400) for token in (*range(length), fresh)]
    steps, drafted, _ = follow([*range(length)], answer)
    assert steps + 0.2 * drafted <= 1.005 * len(answer)


def test_free_text_is_left_alone() -> None:
    """Words drawn by how common they are, in which pairs repeat by chance: a row more costs a fifth of a step."""
    rng = random.Random(2)
    words, weights = range(2000), [1 / (rank + 2) for rank in range(2000)]
    for _ in range(10):
        prompt, answer = rng.choices(words, weights, k=200), rng.choices(words, weights, k=400)
        steps, drafted, _ = follow(prompt, answer)
        assert steps + 0.2 * drafted < 1.03 * (len(answer) - 1)


def test_guessing_comes_back_where_it_pays_again() -> None:
    passage = random.Random(3).sample(range(1000), 200)
    misleading = [token for at in range(0, 150, 3) for token in (passage[at], passage[at + 1], 5000 + at)]
    lookup = Lookup(tokens := [*passage, *misleading], len(passage))
    lookup.guess(MOST_DRAFTS)
    assert lookup._chances[2] < 0.05, "fifty pairs went on otherwise"
    for token in passage[150:162]:
        tokens.append(token)
        guesses = lookup.guess(MOST_DRAFTS)
    assert len(guesses) >= 5 and list(guesses) == passage[162 : 162 + len(guesses)]


class Counting(list):  # type: ignore[type-arg]
    """A list that counts how often it is looked into."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("kinds", [1, 2, 3, 50])
def test_a_token_costs_the_same_in_a_long_text(kinds: int) -> None:
    rng = random.Random(kinds)
    tokens = Counting(rng.randrange(kinds) for _ in range(4))
    lookup = Lookup(tokens, 1)
    for _ in range(8192):
        tokens.append(rng.randrange(kinds))
        before = tokens.reads
        lookup.guess(MOST_DRAFTS)
        assert tokens.reads - before <= 4 + drafts.CANDIDATES * 2 * (LONGEST - 1) + MOST_DRAFTS


def running(scheduler: Scheduler, lengths: list[int], guesses: int) -> list[Sequence]:
    """Sequences of these lengths that decode, each with so many guesses."""
    for index, length in enumerate(lengths):
        request = GenerateRequest(f"r{index}", [100 * index + n for n in range(length)], SamplingParams(50))
        scheduler.waiting.append(Sequence(request, [], frozenset(), b"", scheduler.pool.block_size))
    for item in scheduler.schedule():
        item.sequence.append(7, None)
        scheduler.computed(item)
        item.sequence.drafts = tuple(range(guesses))
    assert len(scheduler.running) == len(lengths)
    return list(scheduler.running)


def drafted(work: list[Work]) -> list[int]:
    assert all(item.count == 1 + len(item.drafts) for item in work if item.samples)
    return [len(item.drafts) for item in work]


@pytest.mark.parametrize(
    ("sequences", "budget", "each"),
    [
        (1, 64, 10),
        (1, 4, 3),
        (1, 1, 0),
        (2, 64, 5),
        (3, 64, 3),
        (4, 64, 2),
        (4, 11, 1),
        (6, 64, 1),
        (7, 64, 0),
        (9, 64, 0),
    ],
)
def test_guesses_share_the_rows_and_tokens_that_are_left(sequences: int, budget: int, each: int) -> None:
    """12 rows of logits in all."""
    scheduler = Scheduler(BlockPool(64, 4), 16, 128, sampled_rows=12)
    running(scheduler, [6] * sequences, 10)
    scheduler.budgets = (budget, budget)
    work = scheduler.schedule()
    assert drafted(work) == [each] * min(sequences, budget)
    assert sum(item.count for item in work) <= budget
    scheduler.pool.check()


def test_guesses_take_no_other_request_s_blocks_or_tokens() -> None:
    """A block of 4 each, all in use: a second block is there for one of the two; then a prompt takes the budget."""
    scheduler = Scheduler(BlockPool(3, 4), 4, 64, sampled_rows=12)
    first, second = running(scheduler, [3, 2], 4)
    work = scheduler.schedule()
    assert drafted(work) == [4, 0] and scheduler.preemptions == 0 and scheduler.pool.available == 0
    assert (len(first.blocks), len(second.blocks)) == (2, 1)
    scheduler = Scheduler(BlockPool(64, 4), 4, 64, sampled_rows=12)
    running(scheduler, [3], 4)
    scheduler.budgets = (12, 12)
    request = GenerateRequest("new", list(range(900, 909)), SamplingParams(5))
    scheduler.waiting.append(Sequence(request, [], frozenset(), b"", 4))
    assert [(item.count, len(item.drafts)) for item in scheduler.schedule()] == [(3, 2), (9, 0)]


def test_nothing_is_guessed_past_the_end_or_before_the_prompt_is_done() -> None:
    for made, most in ((1, 8), (6, 3), (8, 1), (9, 0)):
        request = GenerateRequest(
            "r", [1, 2, 3, 4, 5, 6] * 4, SamplingParams(10), output_ids=([1, 2, 3, 4, 5, 6] * 2)[:made]
        )
        sequence = Sequence(request, [], frozenset(), b"", 4)
        sequence.look_up_drafts()
        assert sequence.drafts == (), "its keys and values aren't there yet"
        sequence.computed = len(sequence.tokens) - 1
        sequence.look_up_drafts()
        assert len(sequence.drafts) <= most and (not most or sequence.drafts[0] == made % 6 + 1)
        assert bool(most) == bool(sequence.drafts)


def test_the_ways_to_guess_are_named() -> None:
    assert [ServeConfig(speculative=name).speculative for name in ("off", "mtp", "ngram")] == ["off", "mtp", "ngram"]
    assert ServeConfig().speculative == "off" and parse_speculation("ngram") == "ngram"
    for wrong in (True, "yes", None, ["mtp"]):
        with pytest.raises(ConfigError, match="one of off, mtp, ngram") as caught:
            parse_speculation(wrong)
        assert "ngram" in caught.value.remedy
    with pytest.raises(ConfigError, match="speculative must be one of off, mtp, ngram"):
        ServeConfig(speculative="draft")
    check_speculation("ngram", modules=0, slot_state=False)
    check_speculation("off", modules=0, slot_state=True)
    with pytest.raises(UnsupportedError, match="no prediction module"):
        check_speculation("mtp", modules=0, slot_state=False)
    with pytest.raises(UnsupportedError, match="rings or states"):
        check_speculation("ngram", modules=0, slot_state=True)
