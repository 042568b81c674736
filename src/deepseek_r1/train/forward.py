"""The trainer's forward pass: log-probabilities of given tokens, bit for bit those that the engine reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.decoder import Decoder

PIECE = 512
"""Rows of logits that stand in memory at a time: 100 MB for a vocabulary of 49,152."""

Piece = Callable[[Tensor, Tensor], Tensor]
"""Hidden rows (n, hidden) and their targets (n,) -> numbers (k, n) float64, each of which depends on its own row."""


def hidden_states(
    decoder: Decoder,
    ids: Tensor,
    positions: Tensor,
    lengths: Sequence[int],
    prefixes: Sequence[int | None] | None = None,
) -> Tensor:
    """Whole sequences laid end to end, ids and positions (T,) -> hidden states (T, hidden), with gradients.

    `prefixes` names, for a sequence that goes on from the end of another one, that one's number.
    """
    return decoder(ids, positions, Packed(lengths, prefixes))  # type: ignore[no-any-return]


def logprobs_of(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each row: hidden (n, hidden), targets (n,) -> (n,) float64."""

    def piece(rows: Tensor, wanted: Tensor) -> Tensor:
        return ops.token_logprobs(decoder.logits(rows), wanted).unsqueeze(0)

    return _in_pieces(decoder, piece, hidden, targets)[0]


def logprobs_and_entropies(decoder: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`logprobs_of`, and the entropy of each row's distribution in nats: (n,) float64 and (n,) float32."""

    def piece(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = decoder.logits(rows)
        logs = torch.log_softmax(logits, -1)
        entropy = -(logs.exp() * logs).sum(-1)
        return torch.stack((ops.token_logprobs(logits, wanted), entropy.double()))

    logprobs, entropies = _in_pieces(decoder, piece, hidden, targets)
    return logprobs, entropies.float()


def _in_pieces(decoder: Decoder, piece: Piece, hidden: Tensor, targets: Tensor) -> Tensor:
    """`piece` over all rows, a few at a time, nothing of whose logits is kept: (k, n)."""
    run = _again if any(p.requires_grad for p in decoder.lm_head.parameters()) else _at_once
    pairs = zip(torch.split(hidden, PIECE), torch.split(targets, PIECE), strict=True)
    return torch.cat([run(piece, *pair) for pair in pairs], dim=1)


def _again(piece: Piece, rows: Tensor, wanted: Tensor) -> Tensor:
    """Backward makes the logits again: their weights learn."""
    return checkpoint(piece, rows, wanted, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def _at_once(piece: Piece, rows: Tensor, wanted: Tensor) -> Tensor:
    """Forward takes the gradients of each row's numbers while the logits are there: the rows alone learn."""
    if ops.needed(rows):
        return _AtOnce.apply(piece, rows, wanted)  # type: ignore[no-untyped-call, no-any-return]
    return piece(rows, wanted)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Piece, rows: Tensor, wanted: Tensor) -> Tensor:
        own = rows.detach().requires_grad_()
        with torch.enable_grad():
            out = piece(own, wanted)
            sums = out.sum(1).unbind()
        grads = [torch.autograd.grad(one, own, retain_graph=i + 1 < len(sums))[0] for i, one in enumerate(sums)]
        ctx.save_for_backward(*grads)
        return out.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        parts = [
            one.unsqueeze(1).to(saved.dtype) * saved for one, saved in zip(grads[0], ctx.saved_tensors, strict=True)
        ]
        return None, sum(parts[1:], parts[0]), None
