"""Runs one step's work through the decoder and samples the next tokens."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.engine.request import TokenLogprobs
from deepseek_r1.engine.sampler import sample
from deepseek_r1.engine.scheduler import Work
from deepseek_r1.models.decoder import Decoder

Sampled = tuple[Work, int, TokenLogprobs | None]


class Runner:
    """The decoder with its KV cache."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache

    @torch.inference_mode()
    def run(self, work: Items[Work]) -> list[Sampled]:
        """Compute the keys and values of all work; return the next token of each item that samples."""
        work = sorted(work, key=lambda item: item.count > 1)  # `Paged` wants one-token spans first
        spans = [Span(item.start, item.count, item.sequence.blocks, item.sequence.slot) for item in work]
        paged = Paged(self.cache, spans)
        ids = [token for item in work for token in item.sequence.tokens[item.start : item.start + item.count]]
        hidden = self.decoder(torch.tensor(ids), paged.positions, paged)  # (T, hidden)
        rows, sampling, end = [], [], 0
        for item in work:
            end += item.count
            if item.samples:
                rows.append(end - 1)
                sampling.append(item)
        if not rows:
            return []
        logits = self.decoder.logits(hidden if len(rows) == len(ids) else hidden[rows])
        tokens = sample(logits, [item.sequence for item in sampling])
        return [(item, token, logprobs) for item, (token, logprobs) in zip(sampling, tokens, strict=True)]
