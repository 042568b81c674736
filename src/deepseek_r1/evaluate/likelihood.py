"""Log-probabilities of given text, through the packed forward pass that training uses: no cache, no sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_r1.core.errors import RequestError
from deepseek_r1.evaluate.question import ChoiceQuestion
from deepseek_r1.evaluate.targets import ModelTarget
from deepseek_r1.kernels import ops
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.text.chat_template import opens_thinking

STEP_TOKENS = 2048
"""Tokens of a forward pass, unless one sequence has more."""

_PIECE = 512  # rows of logits that stand in memory at a time


@dataclass(frozen=True)
class Scored:
    """Token ids, of which those from `start` (at least 1) on are scored, given all before each."""

    ids: tuple[int, ...]
    start: int


def token_logprobs(target: ModelTarget, sequences: Iterable[Scored]) -> Iterator[list[float]]:
    """log p of each scored token, sequence by sequence, in nats. Raises `RequestError` for one beyond the context.

    Sequences that differ in their last token only are computed once.
    """
    group: list[Scored] = []
    inputs: dict[tuple[int, ...], int] = {}  # all but the last token, which no other one follows
    size = 0
    for sequence in sequences:
        _require_room(target, len(sequence.ids) - 1)
        given = sequence.ids[:-1]
        if group and given not in inputs and size + len(given) > STEP_TOKENS:
            yield from _run(target, group, inputs)
            group, inputs, size = [], {}, 0
        if given not in inputs:
            inputs[given] = size
            size += len(given)
        group.append(sequence)
    if group:
        yield from _run(target, group, inputs)


def _require_room(target: ModelTarget, length: int) -> None:
    most = target.decoder.config.max_position
    if length > most:
        raise RequestError(
            f"a text of {length} tokens is longer than the model's context of {most}", remedy="shorten the text"
        )


def _run(target: ModelTarget, group: Sequence[Scored], inputs: dict[tuple[int, ...], int]) -> list[list[float]]:
    """One forward pass over the inputs, which begin at the rows that they are mapped to."""
    ids = torch.tensor([token for given in inputs for token in given])
    positions = torch.cat([torch.arange(len(given)) for given in inputs])
    rows = [inputs[each.ids[:-1]] + place - 1 for each in group for place in range(each.start, len(each.ids))]
    wanted = torch.tensor([token for each in group for token in each.ids[each.start :]])
    flat = _logprobs(target, ids, positions, [len(given) for given in inputs], rows, wanted)
    values = iter(flat.tolist())
    return [[next(values) for _ in range(each.start, len(each.ids))] for each in group]


@torch.inference_mode()
def _logprobs(
    target: ModelTarget, ids: Tensor, positions: Tensor, lengths: list[int], rows: list[int], wanted: Tensor
) -> Tensor:
    """ids and positions (T,), rows (n,) of them whose next tokens are `wanted` (n,) -> (n,) float64."""
    decoder = target.decoder
    with decoder.adapters.everywhere(target.adapter):
        hidden = decoder(ids, positions, Packed(lengths))[rows]  # (n, hidden)
    pieces = zip(torch.split(hidden, _PIECE), torch.split(wanted, _PIECE), strict=True)
    return torch.cat([ops.token_logprobs(decoder.logits(some), tokens) for some, tokens in pieces])


def choice_sequences(target: ModelTarget, question: ChoiceQuestion, by_letter: bool) -> list[Scored]:
    """A sequence for each choice: the prompt with the choice's letter or text as the answer, which is scored.

    The prompt lists the choices where letters are scored, else it is the question alone. Where the template opens the
    thinking, it is closed at once. Texts are split into tokens with their prompt; from the first token on that isn't
    the prompt's own in every sequence, all is scored.
    """
    prompt, _ = target.prompt(question.listed if by_letter else question.question)
    if opens_thinking(prompt):
        prompt = prompt.rstrip() + "\n\n</think>\n\n"
    letters = [chr(ord("A") + place) for place in range(len(question.choices))]
    encode = target.tokenizer.encode
    given = encode(prompt, add_special_tokens=False)
    wholes = [
        encode(prompt + answer, add_special_tokens=False) for answer in (letters if by_letter else question.choices)
    ]
    start = min(_shared(given, whole) for whole in wholes)
    return [Scored(tuple(whole), start) for whole in wholes]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with in common, one less than the other one has at most."""
    count = 0
    for a, b in zip(one, other[:-1], strict=False):
        if a != b:
            break
        count += 1
    return max(1, count)


@dataclass(frozen=True)
class Window:
    """A part of a text: its place (text and number) and what of it is scored."""

    place: str
    scored: Scored


def windows(text: str, ids: Sequence[int], size: int, stride: int) -> Iterator[Window]:
    """Windows of at most `size` ids over a text, `stride` apart, which score every id but the first exactly once.

    The first window scores all of its ids but one; each further one the `stride` ids that follow the one before, with
    size - stride ids as context.
    """
    end, scored = min(size, len(ids)), 1
    number = 0
    while scored < len(ids):
        begin = max(0, end - size)
        yield Window(f"{text}:{number}", Scored(tuple(ids[begin:end]), scored - begin))
        scored, end = end, min(end + stride, len(ids))
        number += 1
