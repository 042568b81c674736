"""From logits to tokens: penalties, filters, and a counter-based random number per token.

The number is a function of (request seed, choice index, absolute position) alone, so a token does not depend on the
batch it is computed in, nor on what was preempted or restarted before it. Ties go to the lower id.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from deepseek_r1.engine.request import SamplingParams, TokenLogprobs
from deepseek_r1.engine.sequence import Sequence
from deepseek_r1.kernels import ops

CANDIDATES = 1024
"""How many of the most likely tokens top-p looks at before it sorts the whole vocabulary."""


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1): Philox-4x64-10 keyed by the seed, with (position, choice) as its counter."""
    key = seed & 0xFFFF_FFFF_FFFF_FFFF
    if ops.NATIVE:
        return ops.uniform(key, choice, position)
    raw = np.random.Philox(key=key, counter=[position, choice, 0, 0]).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def sample(logits: Tensor, sequences: Items[Sequence]) -> list[tuple[int, TokenLogprobs | None]]:
    """logits (B, vocabulary) float32, one row per sequence -> the next token of each, with logprobs where asked for."""
    raw = logits
    changed = [row for row, sequence in enumerate(sequences) if _changes_logits(sequence.sampling)]
    if changed:
        logits = logits.clone()
        for row in changed:
            _adjust(logits[row], sequences[row])
    tokens = ops.argmax(logits).tolist()
    drawn = []
    for row, sequence in enumerate(sequences):
        if sequence.forced_token is not None:
            tokens[row] = sequence.forced_token
        elif sequence.sampling.temperature > 0:
            drawn.append(row)
    for row, token in zip(drawn, _draw_rows(logits, drawn, sequences), strict=True):
        tokens[row] = token
    reported = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    counts = [sequences[row].sampling.logprobs or 0 for row in reported]
    found = dict(zip(reported, _logprobs_rows(raw, reported, [tokens[row] for row in reported], counts), strict=True))
    return [(token, found.get(row)) for row, token in enumerate(tokens)]


def _changes_logits(params: SamplingParams) -> bool:
    return params.uses_penalties or bool(params.logit_bias)


def _adjust(row: Tensor, sequence: Sequence) -> None:
    """Apply penalties and bias in place: repetition over prompt and output, presence and frequency over output."""
    params = sequence.sampling
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.tokens)))
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sequence.output_ids and (params.presence_penalty or params.frequency_penalty):
        ids, counts = np.unique(np.asarray(sequence.output_ids), return_counts=True)
        amount = params.presence_penalty + params.frequency_penalty * torch.from_numpy(counts).float()
        row[torch.from_numpy(ids)] -= amount
    if params.logit_bias:
        ids_ = torch.tensor(list(params.logit_bias))
        row[ids_] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype)


def _draw_rows(logits: Tensor, rows: list[int], sequences: Items[Sequence]) -> list[int]:
    """Draw one token of each of these rows."""
    if not rows or not ops.samples_natively(logits):
        return [_draw(logits[row], sequences[row]) for row in rows]
    chosen = [sequences[row] for row in rows]
    filters = [ops.Filter(s.temperature, s.top_k, s.top_p, s.min_p) for s in (one.sampling for one in chosen)]
    points = [_point(sequence) for sequence in chosen]
    return ops.draw(logits, torch.tensor(rows), filters, points).tolist()


def _point(sequence: Sequence) -> float:
    return uniform(sequence.sampling.seed, sequence.choice_index, len(sequence.tokens))


def _draw(row: Tensor, sequence: Sequence) -> int:
    """Draw one token of the filtered distribution by inverting its sum over ids in ascending order."""
    params = sequence.sampling
    scaled = row.double() / params.temperature
    ids, chances = _filtered(scaled, params)
    sums = np.cumsum(chances)
    point = _point(sequence) * sums[-1]
    index = min(int(np.searchsorted(sums, point, side="right")), len(sums) - 1)
    while chances[index] == 0:  # rounding can land on the far edge, where nothing has a chance
        index -= 1
    return index if ids is None else int(ids[index])


def _filtered(scaled: Tensor, params: SamplingParams) -> tuple[np.ndarray | None, np.ndarray]:
    """The tokens that top_k, top_p and min_p leave (None: all), ascending by id, and their unnormalised chances."""
    vocabulary = scaled.shape[0]
    chances = torch.exp(scaled - scaled.max())
    top_k = params.top_k if 0 < params.top_k < vocabulary else 0
    if not top_k and params.top_p >= 1:
        kept = chances.numpy()
        return (None, np.where(kept >= params.min_p, kept, 0.0)) if params.min_p > 0 else (None, kept)
    count = top_k or min(CANDIDATES, vocabulary)
    ids, values = _largest(chances, count)
    if params.top_p < 1:
        total = float(values.sum()) if top_k else float(chances.sum())
        if not top_k and values.sum() < params.top_p * total:
            ids, values = _largest(chances, vocabulary)
        before = np.cumsum(values) - values
        keep = before < params.top_p * total
        ids, values = ids[keep], values[keep]
    if params.min_p > 0:
        keep = values >= params.min_p
        ids, values = ids[keep], values[keep]
    order = np.argsort(ids)
    return ids[order], values[order]


def _largest(chances: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values of the `count` largest, largest first; among equals the lower id comes first."""
    if count < chances.shape[0]:
        least = chances.topk(count).values[-1]
        ids = torch.nonzero(chances >= least).squeeze(1)  # every token that ties with the last one is looked at
    else:
        ids = torch.arange(chances.shape[0])
    order = torch.sort(chances[ids], descending=True, stable=True).indices[:count]
    ids = ids[order]
    return ids.numpy(), chances[ids].numpy()


def _logprobs_rows(logits: Tensor, rows: list[int], tokens: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Of each of these rows: the token's log-probability, and those of the `counts` most likely ones."""
    if not rows or not ops.samples_natively(logits):
        return [_logprobs(logits[r], token, count) for r, token, count in zip(rows, tokens, counts, strict=True)]
    most = min(max(counts), logits.shape[1])
    own, ids, values = ops.logprobs(logits, torch.tensor(rows), torch.tensor(tokens), most)
    found = zip(own.tolist(), ids.tolist(), values.tolist(), counts, strict=True)
    return [TokenLogprobs(one, top[:count], tops[:count]) for one, top, tops, count in found]


def _logprobs(row: Tensor, token: int, count: int) -> TokenLogprobs:
    values = row.double()
    values = values - torch.logsumexp(values, dim=-1)
    if not count:
        return TokenLogprobs(float(values[token]))
    ids, _ = _largest(values, min(count, values.shape[0]))
    return TokenLogprobs(float(values[token]), ids.tolist(), values[torch.from_numpy(ids)].tolist())
