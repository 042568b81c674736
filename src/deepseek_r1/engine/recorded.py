"""Steps of few tokens, recorded once per number of tokens and replayed: decoding costs its kernels, no dispatch."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.kernels import native
from deepseek_r1.kernels.recording import Arena, Recording
from deepseek_r1.kernels.spans import Spans
from deepseek_r1.models.decoder import Decoder

MOST_TOKENS = 64
"""Steps of more tokens are not recorded: their kernels take so long that dispatch does not show."""

_REACH = 8192  # positions up to which one token's attention is shared out among threads


class RecordedSteps:
    """The decoder's steps over one cache, by their number of tokens, with the logits of all of them.

    What changes from step to step stands at fixed places: token ids, positions, spans. `unable` says why steps can't
    be replayed, once that has turned out: some operator has no native kernel.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, arena: Arena) -> None:
        self.unable: str | None = "rings and states have no native kernel" if cache.has_slot_state else None
        self._decoder = decoder
        self._cache = cache
        self._arena = arena
        self._recordings: dict[int, Recording] = {}
        self._ids = torch.zeros(MOST_TOKENS, dtype=torch.int64)
        self._positions = torch.zeros(MOST_TOKENS, dtype=torch.int64)
        self._spans = self._make_spans(1024)

    def run(self, ids: Items[int], spans: Items[Span]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of the step's tokens, valid until the next call."""
        tokens = len(ids)
        self._ids.numpy()[:tokens] = ids
        self._positions.numpy()[:tokens] = [p for span in spans for p in range(span.start, span.length)]
        blocks = sum(-(-span.length // self._cache.block_size) for span in spans)
        if blocks > len(self._spans.blocks):
            self._spans = self._make_spans(2 * blocks)
            self._recordings.clear()  # they know the addresses of what was there before
        self._spans.fill([(span.start, span.count, span.blocks) for span in spans])
        recording = self._recordings.get(tokens)
        if recording is not None:
            hidden, logits = recording.replay()
            return hidden, logits
        recording = Recording(native.library, self._arena)
        hidden, logits = recording.make(lambda: self._compute(tokens, spans))
        if recording.foreign is None:
            self._recordings[tokens] = recording
        else:
            self.unable = f"{recording.foreign} has no native kernel"
        return hidden, logits

    def _compute(self, tokens: int, spans: Items[Span]) -> tuple[Tensor, Tensor]:
        paged = Paged(self._cache, spans, self._positions[:tokens], self._spans)
        hidden = self._decoder(self._ids[:tokens], paged.positions, paged)
        return hidden, self._decoder.logits(hidden)

    def _make_spans(self, blocks: int) -> Spans:
        return Spans(MOST_TOKENS, MOST_TOKENS, blocks, self._cache.block_size, _REACH)
