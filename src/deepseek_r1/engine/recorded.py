"""Steps recorded once per number of tokens and replayed: decoding and full steps cost their kernels, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.kernels import native
from deepseek_r1.kernels.recording import Arena, Recording
from deepseek_r1.kernels.spans import Spans
from deepseek_r1.layers.lora import Segment
from deepseek_r1.models.decoder import Decoder

MOST_TOKENS = 64
"""Decode steps of more tokens are not recorded: their kernels take so long that dispatch does not show."""

MOST_RECORDINGS = 512
"""Adapters in a batch make as many kinds of steps as there are ways to share out its rows."""

_REACH = 8192  # positions up to which one token's attention is shared out among threads


class RecordedSteps:
    """The decoder's steps over one cache by their number of tokens: of few with the logits of all, of `full` without.

    What changes from step to step stands at fixed places: token ids, positions, spans. `unable` says why steps can't
    be replayed, once that has turned out: some operator has no native kernel.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, arena: Arena, full: Items[int] = ()) -> None:
        self.full = full
        self.unable: str | None = "rings and states have no native kernel" if cache.has_slot_state else None
        self._decoder = decoder
        self._cache = cache
        self._arena = arena
        self._recordings: dict[tuple[int, bool, tuple[Segment, ...]], Recording] = {}
        self._most = max((MOST_TOKENS, *full))
        self._ids = torch.zeros(self._most, dtype=torch.int64)
        self._positions = torch.zeros(self._most, dtype=torch.int64)
        self._spans = self._make_spans(1024)

    def forget(self) -> None:
        """Record every step anew."""
        self._recordings.clear()

    def run(
        self, ids: Items[int], spans: Items[Span], segments: tuple[Segment, ...] = (), *, logits: bool = True
    ) -> tuple[Tensor, ...]:
        """Hidden states of the step's tokens, and with `logits` these too, valid until the next call.

        `segments` are the rows that adapters change, as the decoder's `adapters` have them.
        """
        tokens = len(ids)
        self._ids.numpy()[:tokens] = ids
        positions = [np.arange(span.start, span.length) for span in spans]
        np.concatenate(positions, out=self._positions.numpy()[:tokens])
        blocks = sum(-(-span.length // self._cache.block_size) for span in spans)
        if blocks > len(self._spans.blocks):
            self._spans = self._make_spans(2 * blocks)
            self._recordings.clear()  # they know the addresses of what was there before
        self._spans.fill([(span.start, span.count, span.blocks) for span in spans])
        key = (tokens, logits, segments)
        recording = self._recordings.get(key)
        if recording is not None:
            return recording.replay()
        recording = Recording(native.library, self._arena)
        results = recording.make(lambda: self._compute(tokens, spans, logits))
        if recording.foreign is None:
            if len(self._recordings) >= MOST_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = recording
        else:
            self.unable = f"{recording.foreign} has no native kernel"
        return results

    def _compute(self, tokens: int, spans: Items[Span], logits: bool) -> tuple[Tensor, ...]:
        paged = Paged(self._cache, spans, self._positions[:tokens], self._spans)
        hidden = self._decoder(self._ids[:tokens], paged.positions, paged)
        return (hidden, self._decoder.logits(hidden)) if logits else (hidden,)

    def _make_spans(self, blocks: int) -> Spans:
        return Spans(self._most, self._most, blocks, self._cache.block_size, _REACH)
