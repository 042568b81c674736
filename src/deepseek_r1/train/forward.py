"""The trainer's forward pass: log-probabilities of given tokens, bit for bit those that the engine reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.decoder import Decoder

PIECE = 512
"""Rows of logits that stand in memory at a time: 100 MB for a vocabulary of 49,152. Backward makes them again."""


def hidden_states(decoder: Decoder, ids: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
    """Whole sequences laid end to end, ids and positions (T,) -> hidden states (T, hidden), with gradients."""
    return decoder(ids, positions, Packed(lengths))  # type: ignore[no-any-return]


def logprobs_of(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each row: hidden (n, hidden), targets (n,) -> (n,) float64."""

    def piece(rows: Tensor, wanted: Tensor) -> Tensor:
        return ops.token_logprobs(decoder.logits(rows), wanted)

    return torch.cat([_again(piece, *pair) for pair in _pieces(hidden, targets)])


def logprobs_and_entropies(decoder: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`logprobs_of`, and the entropy of each row's distribution in nats: (n,) float64 and (n,) float32."""

    def piece(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = decoder.logits(rows)
        logs = torch.log_softmax(logits, -1)
        entropy = -(logs.exp() * logs).sum(-1)
        return torch.stack((ops.token_logprobs(logits, wanted), entropy.double()))

    logprobs, entropies = torch.cat([_again(piece, *pair) for pair in _pieces(hidden, targets)], dim=1)
    return logprobs, entropies.float()


def _pieces(hidden: Tensor, targets: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden, PIECE), torch.split(targets, PIECE), strict=True)


def _again(piece: object, rows: Tensor, wanted: Tensor) -> Tensor:
    """`piece` with nothing kept for backward but what it was given."""
    return checkpoint(piece, rows, wanted, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
