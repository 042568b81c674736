"""From a record to token ids and which of them the loss asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_r1.data.errors import DataError
from deepseek_r1.data.records import Record
from deepseek_r1.data.tokenizer import TextTokenizer
from deepseek_r1.data.turns import Conversation, Span

TrainOn = Literal["assistant", "last", "all"]

MOST_TOKENS_OF_A_LETTER = 4
"""UTF-8 has at most four bytes for a letter, and byte-level tokenizers one token for a byte."""


@dataclass(frozen=True)
class Example:
    """A sequence of token ids. `trained[i]` says whether the loss asks for token i, as what follows on those before it.

    The first token follows on nothing, so it is never trained. `place` says which record this was.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    place: str


def encode_record(record: Record, tokenizer: TextTokenizer, *, train_on: TrainOn = "assistant") -> Example:
    """The example of a record.

    Of a conversation, `train_on` chooses the tokens of every turn of the assistant, of its last turn, or all of them;
    a turn's tokens include the one that ends it, and nothing after it. What follows the last trained turn is left out.
    Of a prompt with a completion, the completion and the end-of-text token after it are trained (with "all", the prompt
    too); of a plain text everything. A token that reaches over a border belongs to the part in which it ends.

    Raises `DataError` for an empty text where something should be trained, and for a conversation whose turns can't be
    told apart under the model's chat template.
    """
    fields = record.fields
    if "messages" in fields:
        return _conversation(fields["messages"], 0, "messages", tokenizer, train_on, record.place)
    if "text" in fields:
        return _plain("", fields["text"], "text", tokenizer, True, record.place)
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list):
        messages = [*prompt, *completion]
        return _conversation(messages, len(prompt), "completion", tokenizer, train_on, record.place)
    return _plain(prompt, completion, "completion", tokenizer, train_on == "all", record.place)


def _conversation(
    messages: list[dict[str, Any]], first: int, field: str, tokenizer: TextTokenizer, train_on: TrainOn, place: str
) -> Example:
    """`first` is the message from which on turns are trained; `field` names in errors where that one stands."""
    turns = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    if train_on == "last":
        turns = turns[-1:]
    for turn in turns:
        if not messages[turn]["content"].strip():
            raise _empty(place, f"{field}[{turn - first}].content")
    conversation = Conversation(messages, tokenizer, place)
    if train_on == "all":
        text = conversation.complete_text()
        spans = [(0, len(text))]
    elif turns:
        text, spans = conversation.spoken(turns)
    else:
        text, spans = conversation.text(), []
    ids = tokenizer.encode(text, add_special_tokens=False)
    return _example(ids, _token_spans(text, ids, spans, tokenizer, place), place)


def _plain(prompt: str, text: str, field: str, tokenizer: TextTokenizer, everything: bool, place: str) -> Example:
    if not text.strip():
        raise _empty(place, field)
    whole = prompt + text
    ids = tokenizer.encode(whole, add_special_tokens=False)
    start = 0 if everything else _token_border(whole, ids, len(prompt), tokenizer, place)
    begin = _begin_tokens(whole, ids, tokenizer)
    ends = tokenizer.eos_token_ids
    end = [] if not ends or ids[-1:] == [ends[0]] else [ends[0]]
    ids = [*begin, *ids, *end]
    return _example(ids, [(0 if everything else len(begin) + start, len(ids))], place)


def _empty(place: str, field: str) -> DataError:
    return DataError(place, field, "is empty, so there is nothing to learn", remedy="fill it, or leave the record out")


def _begin_tokens(text: str, ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    """What the model expects before a plain text (usually a begin token or nothing)."""
    dressed = tokenizer.encode(text, add_special_tokens=True)
    for start in range(len(dressed) - len(ids) + 1):
        if dressed[start : start + len(ids)] == ids:
            return dressed[:start]
    return []


def _example(ids: list[int], spans: Iterable[Span], place: str) -> Example:
    trained = [False] * len(ids)
    for start, end in spans:
        trained[start:end] = [True] * (end - start)
    if trained:
        trained[0] = False
    return Example(tuple(ids), tuple(trained), place)


# --- from letters to tokens -------------------------------------------------------------------------------------------


def _token_spans(text: str, ids: list[int], spans: list[Span], tokenizer: TextTokenizer, place: str) -> list[Span]:
    """Spans of letters as spans of tokens; a token that reaches over a border belongs to the part in which it ends."""
    borders = [[_token_border(text, ids, border, tokenizer, place) for border in span] for span in spans]
    return [(start, end) for start, end in borders]


def _token_border(text: str, ids: list[int], border: int, tokenizer: TextTokenizer, place: str) -> int:
    """How many tokens of `text` end at or before the letter at `border`."""
    if border in (0, len(text)):
        return len(ids) if border else 0
    before = tokenizer.encode(text[:border], add_special_tokens=False)
    if ids[: len(before)] == before:
        return len(before)
    # Both begin with the same tokens, so from there on the text before the border measures what each token reaches.
    differing = (place for place, (one, other) in enumerate(zip(ids, before, strict=False)) if one != other)
    same = next(differing, min(len(ids), len(before)))
    for start in range(same, max(-1, same - MOST_TOKENS_OF_A_LETTER), -1):
        tail = tokenizer.decode(before[start:], skip_special_tokens=False)
        if text.endswith(tail, 0, border):
            break
    else:
        raise DataError(
            place,
            "",
            f"the tokenizer joins letters across the border of an answer, {text[max(0, border - 10) : border + 10]!r}, "
            "and doesn't give this text back letter by letter",
            remedy="end prompts where a word ends, for instance with a line break",
        )
    stop = start
    while stop < len(ids) and len(tokenizer.decode(ids[start : stop + 1], skip_special_tokens=False)) <= len(tail):
        stop += 1
    return stop
