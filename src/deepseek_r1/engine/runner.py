"""Runs one step's work through the decoder, samples the next tokens, verifies guesses and makes new ones."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.engine.drafts import check_speculation
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.engine.recorded import MOST_TOKENS, RecordedSteps
from deepseek_r1.engine.request import TokenOutput
from deepseek_r1.engine.sampler import sample
from deepseek_r1.engine.scheduler import Work
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.recording import Arena, using
from deepseek_r1.layers.lora import Segment
from deepseek_r1.models.decoder import Decoder


@dataclass(frozen=True)
class Computed:
    """A step's work in the order of its rows, and their hidden states (T, hidden).

    `logits` (T, vocabulary) are there already where every row is sampled from.
    """

    work: list[Work]
    hidden: Tensor
    logits: Tensor | None = None

    @property
    def first_rows(self) -> list[int]:
        """The row at which each item begins."""
        return [end - item.count for item, end in zip(self.work, accumulate(i.count for i in self.work), strict=True)]


class Runner:
    """The decoder with its KV cache. Steps of `full` tokens, which a long prompt consists of, are recorded.

    With `speculative` tokens are guessed ahead, by the first prediction module or from the request's own text. A guess
    is computed together with the token before it and kept if it is what sampling chooses there: since a token's random
    number depends on its position alone, the output is the one without guesses. Raises `UnsupportedError` where there
    is no module to guess with, or a layer from which a wrong guess can't be taken back.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, speculative: Speculation = "off", full: Items[int] = ()
    ) -> None:
        check_speculation(speculative, modules=len(decoder.mtp), slot_state=cache.has_slot_state)
        self.decoder = decoder
        self.cache = cache
        self.speculative = speculative
        self._arena = Arena()
        self._recorded = RecordedSteps(decoder, cache, self._arena, full) if ops.NATIVE else None

    @torch.inference_mode()
    def run(self, work: Items[Work]) -> Computed:
        """Compute the keys and values of all work."""
        # `Paged` wants one-token spans first; rows of one adapter stand side by side.
        work = sorted(work, key=lambda item: (item.count > 1, item.sequence.adapter or ""))
        segments = _segments(work)
        with self.decoder.adapters.at(segments):
            return self._run(work, segments)

    def _run(self, work: list[Work], segments: tuple[Segment, ...]) -> Computed:
        spans = [_span(item, item.count) for item in work]
        ids = [token for item in work for token in item.token_ids]
        recorded = self._recorded
        decodes = all(item.samples and item.count == len(item.drafts) + 1 for item in work)
        if recorded is not None and recorded.unable is None:
            if decodes and len(ids) <= MOST_TOKENS:
                return Computed(work, *recorded.run(ids, spans, segments))
            if len(ids) in recorded.full:
                return Computed(work, *recorded.run(ids, spans, segments, logits=False))
        paged = Paged(self.cache, spans)
        with using(self._arena):
            return Computed(work, self.decoder(torch.tensor(ids), paged.positions, paged))

    def forget_recordings(self) -> None:
        """Record steps anew: modules have come or gone."""
        if self._recorded is not None:
            self._recorded.forget()

    @torch.inference_mode()
    def sample(self, done: Computed) -> list[TokenOutput]:
        """Give each sequence that is ready its next token, and those after it whose guesses turn out right."""
        ready = [(item, row) for item, row in zip(done.work, done.first_rows, strict=True) if item.samples]
        if not ready:
            return []
        rows: list[int] = []
        going: list[tuple[Work, int]] = []  # the work, and the logits row that its next token comes from
        for item, first in ready:
            going.append((item, len(rows)))
            last = first + item.count
            rows += range(last - len(item.drafts) - 1, last)
        logits = done.logits
        if logits is None:
            with using(self._arena):
                logits = self.decoder.logits(done.hidden if len(rows) == len(done.hidden) else done.hidden[rows])
        outputs: dict[str, TokenOutput] = {}
        place = 0
        while going:
            chosen = [row for _, row in going]
            now = logits if len(chosen) == len(logits) else logits[chosen]
            tokens = sample(now, [item.sequence for item, _ in going])
            right = []
            for (item, row), (token, logprobs) in zip(going, tokens, strict=True):
                output = item.sequence.append(token, logprobs)
                if place:
                    outputs[output.request_id].extend(output)
                else:
                    outputs[output.request_id] = output
                if item.drafts[place : place + 1] == (token,) and item.sequence.finish_reason is None:
                    right.append((item, row + 1))
            going, place = right, place + 1
        return list(outputs.values())

    def draft(self, done: Computed) -> None:
        """Guess the tokens to come of every sequence of the step that has some."""
        if self.speculative == "mtp":
            self._predict(done)
        elif self.speculative == "ngram":
            for item in done.work:
                item.sequence.look_up_drafts()

    @torch.inference_mode()
    def _predict(self, done: Computed) -> None:
        """Guess a token further for every sequence that has one to come; all work goes through the module's cache."""
        rows: list[int] = []
        ids: list[int] = []
        counted: list[tuple[Work, int]] = []
        pairs = zip(done.work, done.first_rows, strict=True)
        # What came out right may be one token where two were computed: one-token spans go first again.
        for item, first in sorted(pairs, key=lambda pair: pair[0].sequence.computed - pair[0].start > 1):
            sequence = item.sequence
            count = sequence.computed - item.start
            rows += range(first, first + count)
            ids += sequence.tokens[item.start + 1 : item.start + 1 + count]
            counted.append((item, count))
        paged = Paged(self.cache, [_span(item, count) for item, count in counted])
        hidden = self.decoder.predict(0, done.hidden[rows], torch.tensor(ids), paged.positions, paged)
        ends = accumulate(count for _, count in counted)
        wanted = [
            (item.sequence, end - 1)
            for (item, _), end in zip(counted, ends, strict=True)
            if item.sequence.computed == len(item.sequence.tokens) - 1 and item.sequence.room_for_drafts > 0
        ]
        for item, _ in counted:
            item.sequence.drafts = ()
        if wanted:
            guesses = self.decoder.logits(hidden[[row for _, row in wanted]]).argmax(-1).tolist()
            for (sequence, _), guess in zip(wanted, guesses, strict=True):
                sequence.drafts = (guess,)


def _span(item: Work, count: int) -> Span:
    return Span(item.start, count, item.sequence.blocks, item.sequence.slot)


def _segments(work: Items[Work]) -> tuple[Segment, ...]:
    """The rows of each adapter, runs of the same one joined."""
    found: list[Segment] = []
    row = 0
    for item in work:
        name, start, row = item.sequence.adapter, row, row + item.count
        if name is None:
            continue
        if found and found[-1].adapter == name and found[-1].stop == start:
            start = found.pop().start
        found.append(Segment(name, start, row))
    return tuple(found)
