"""Which sequences work on which tokens in the next step: continuous batching with chunked prefill and preemption."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

from deepseek_r1.engine.block_pool import BlockPool
from deepseek_r1.engine.sequence import Sequence
from deepseek_r1.engine.slots import SlotPool


@dataclass(frozen=True)
class Work:
    """`count` tokens of a sequence from its position `start`; with `samples` the step yields its next token.

    The last of them may be `drafts`: guesses of the tokens to come, to be verified by what the step samples.
    """

    sequence: Sequence
    start: int
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether the work reaches the sequence's last token (as it was before the step)."""
        return self.start + self.count - len(self.drafts) == len(self.sequence.tokens)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute."""
        known = self.start + self.count - len(self.drafts)
        return [*self.sequence.tokens[self.start : known], *self.drafts]


class Scheduler:
    """First come, first served. Decoding goes before prefill; prefill takes what is left of the token budget.

    A step has up to `max_step_tokens`, half of them while someone waits for a next token: a larger step makes a prompt
    faster, and every stream beside it slower.

    Every running sequence holds a slot. Guesses come last: a step computes at most `sampled_rows` rows of logits with
    them. Without `share_prefixes` no block is found again by its hash.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_concurrent: int,
        max_step_tokens: int,
        *,
        sampled_rows: int = 0,
        share_prefixes: bool = True,
    ) -> None:
        self.pool = pool
        self.slots = SlotPool(max_concurrent)
        self.share_prefixes = share_prefixes
        self.max_concurrent = max_concurrent
        self.budgets = (max_step_tokens, max(1, max_step_tokens // 2))
        self.sampled_rows = sampled_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def schedule(self) -> list[Work]:
        """The next step's work, with blocks reserved for all of it. Empty only when there is nothing to do."""
        work: list[Work] = []
        decoding = sum(len(sequence.tokens) - sequence.computed == 1 for sequence in self.running)
        budget = max(self.budgets[1], min(decoding, self.budgets[0])) if decoding else self.budgets[0]
        preemptions = self.preemptions
        # Decoding first: a token that someone is watching for is never held up by another one's prompt.
        for sequence in sorted(self.running, key=lambda s: len(s.tokens) - s.computed > 1):
            if budget and sequence in self.running:
                budget -= self._continue(sequence, budget, work)
        # What had to give way in this step comes back in a later one.
        while budget and self.waiting and len(self.running) < self.max_concurrent and self.preemptions == preemptions:
            admitted = self._admit()
            if admitted is None:
                break
            budget -= self._continue(admitted, budget, work)
        return self._with_drafts([item for item in work if item.sequence in self.running], budget)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands, and give its blocks and its slot back."""
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def computed(self, item: Work) -> None:
        """Note that a step did this work, after its tokens were taken: full blocks go into the prefix cache.

        What was computed behind a wrong guess doesn't count, and is written over later.
        """
        sequence, size = item.sequence, self.pool.block_size
        before = sequence.computed // size
        sequence.computed = min(item.start + item.count, len(sequence.tokens) - 1)
        if not self.share_prefixes:
            return
        after = sequence.computed // size
        for block, key in zip(sequence.blocks[before:after], sequence.hashes(after)[before:], strict=True):
            self.pool.publish(block, key)

    def _continue(self, sequence: Sequence, budget: int, work: list[Work]) -> int:
        count = min(budget, len(sequence.tokens) - sequence.computed)
        missing = self._missing(sequence, count)
        while missing > self.pool.available:
            # The latest arrival gives way: the oldest always runs to its end, so that no two can starve each other.
            latest = self.running[-1]
            self._preempt(latest)
            if latest is sequence:
                return 0
        sequence.blocks += self.pool.allocate(max(0, missing))
        work.append(Work(sequence, sequence.computed, count))
        return count

    def _with_drafts(self, work: list[Work], budget: int) -> list[Work]:
        """`work` with guesses, from what the rest of the step leaves of tokens, rows of logits and blocks.

        No guess is worth another request's blocks or its place in the step. Each sequence gets the same share: its
        first guesses are the likeliest to be right.
        """
        guessing = sum(item.samples and bool(item.sequence.drafts) for item in work)
        if not guessing:
            return work
        share = max(0, min(budget, self.sampled_rows - sum(item.samples for item in work)) // guessing)
        return [self._draft(item, item.sequence.drafts[:share]) if item.samples else item for item in work]

    def _draft(self, item: Work, drafts: tuple[int, ...]) -> Work:
        missing = self._missing(item.sequence, item.count + len(drafts))
        if missing > self.pool.available:
            return item
        item.sequence.blocks += self.pool.allocate(max(0, missing))
        return replace(item, count=item.count + len(drafts), drafts=drafts)

    def _missing(self, sequence: Sequence, count: int) -> int:
        """How many more blocks the sequence needs to compute `count` more tokens."""
        return -(-(sequence.computed + count) // self.pool.block_size) - len(sequence.blocks)

    def _admit(self) -> Sequence | None:
        """Start the first waiting sequence whose whole prompt finds blocks."""
        size = self.pool.block_size
        filling = {self._next_hash(other) for other in self.running}
        for sequence in self.waiting:
            # At least one token has to be computed, or there would be no hidden state to sample from.
            hashes = sequence.hashes((len(sequence.tokens) - 1) // size) if self.share_prefixes else []
            blocks = self.pool.match(hashes)
            if len(blocks) < len(hashes) and hashes[len(blocks)] in filling:
                # A running sequence computes this very block now: wait a step for it, let others pass.
                self.pool.release(blocks)
                continue
            if -(-(len(sequence.tokens) + 1) // size) - len(blocks) > self.pool.available:
                self.pool.release(blocks)
                return None
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.slot = self.slots.take()
            sequence.blocks = blocks
            sequence.computed = len(blocks) * size
            if sequence.queue_seconds is None:
                sequence.queue_seconds = time.monotonic() - sequence.submitted_at
                sequence.cached_tokens = min(sequence.computed, sequence.prompt_length)
            return sequence
        return None

    def _next_hash(self, sequence: Sequence) -> bytes | None:
        """Hash of the full block that a running sequence fills next, if its tokens are known already."""
        index = sequence.computed // self.pool.block_size
        if (index + 1) * self.pool.block_size > len(sequence.tokens):
            return None
        return sequence.hashes(index + 1)[index]

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Take a running sequence off the machine: what was computed of it is given up."""
        self.running.remove(sequence)
        self.slots.release(sequence.slot)
        self.pool.release(sequence.blocks)
        sequence.slot = -1
        sequence.blocks = []
        sequence.drafts = ()
        sequence.computed = 0
