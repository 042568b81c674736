"""One choice's way from token ids to text: bytes, stop strings, reasoning, whole characters, log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deepseek_r1.engine.request import SamplingParams, TokenLogprobs, TokenOutput
from deepseek_r1.models.text.detokenizer import StopMatcher, Utf8Stream
from deepseek_r1.models.text.think import ThinkCounter, ThinkSplitter

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has no word for (OpenAI's number)."""


@dataclass(frozen=True)
class ShownToken:
    """A token as clients see it. `data` is None for a special token, which has no text."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True)
class OutputToken:
    """A token that was chosen, the likeliest ones at its place, and where its text begins (in characters)."""

    chosen: ShownToken
    top: list[ShownToken]
    offset: int


@dataclass
class TextDelta:
    """What new tokens add to a choice."""

    reasoning: str = ""
    content: str = ""
    reasoning_logprobs: list[OutputToken] = field(default_factory=list)
    content_logprobs: list[OutputToken] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.reasoning_logprobs or self.content_logprobs)


class Vocabulary:
    """The table token id -> bytes, and the names of tokens that have no bytes."""

    def __init__(self, token_bytes: Sequence[bytes], name_of: Callable[[int], str]) -> None:
        self._token_bytes = token_bytes
        self._name_of = name_of

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes: b"" for special tokens, and for ids beyond the tokenizer (padded embedding rows)."""
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""

    def show(self, token_id: int, logprob: float) -> ShownToken:
        """The token for a client; a part of a character is written as `bytes:` and its bytes, escaped."""
        value = logprob if math.isfinite(logprob) else LOWEST_LOGPROB
        data = self.bytes_of(token_id)
        if not data:
            known = token_id < len(self._token_bytes)
            return ShownToken(self._name_of(token_id) if known else f"<{token_id}>", None, value)
        try:
            return ShownToken(data.decode("utf-8"), data, value)
        except UnicodeDecodeError:
            return ShownToken("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data, value)


class OutputText:
    """Turns one choice's outputs into text, the same whatever the steps they arrive in.

    Stop strings are matched on the raw bytes, as the engine does, and cut before reasoning is split off. `split` says
    whether reasoning is split off at all (chat) or left in the text (completions).
    """

    def __init__(self, vocabulary: Vocabulary, sampling: SamplingParams, *, split: bool) -> None:
        think = sampling.think
        self._vocabulary = vocabulary
        self._matcher = StopMatcher(sampling.stop)
        self._splitter = ThinkSplitter(think.open, think.close, think.starts_open) if split else None
        self._counter = ThinkCounter(think.open, think.close, think.starts_open) if split else None
        self._reasoning = Utf8Stream()
        self._content = Utf8Stream()
        self._wants_logprobs = sampling.logprobs is not None
        self._waiting: list[tuple[int, int, OutputToken]] = []  # (index, first byte, token), not shown yet
        self._offsets = Utf8Stream()
        self._characters = 0
        self._tokens = 0
        self._bytes = 0
        self._released = 0
        self._ended = False

    @property
    def reasoning_tokens(self) -> int:
        """Tokens so far whose first byte lies in the reasoning."""
        return self._counter.reasoning_tokens if self._counter is not None else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._matcher.matched is not None

    def push(self, outputs: Sequence[TokenOutput]) -> TextDelta:
        """Take the next outputs of the engine; what they add to the text, complete characters only."""
        delta = TextDelta()
        for output in outputs:
            data = b"".join([self._take(output, place) for place in range(len(output.token_ids))])
            self._release(self._matcher.push(data)[0], delta)
            if output.finish_reason is not None:
                self._end(delta)
        self._show_logprobs(delta)
        return delta

    def _take(self, output: TokenOutput, place: int) -> bytes:
        """Note one token and where it begins; its bytes."""
        token_id = output.token_ids[place]
        data = self._vocabulary.bytes_of(token_id)
        if self._counter is not None:
            self._counter.push(data)
        if self._wants_logprobs and place < len(output.logprobs):
            if data:
                shown = self._shown(token_id, output.logprobs[place])
                self._waiting.append((self._tokens, self._bytes, shown))
            self._characters += len(self._offsets.push(data))
        self._tokens += 1
        self._bytes += len(data)
        return data

    def _shown(self, token_id: int, logprobs: TokenLogprobs) -> OutputToken:
        show = self._vocabulary.show
        top = [show(i, value) for i, value in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)]
        return OutputToken(show(token_id, logprobs.logprob), top, self._characters)

    def _release(self, data: bytes, delta: TextDelta) -> None:
        """Hand on bytes that no stop string can take back."""
        self._released += len(data)
        if self._splitter is None:
            delta.content += self._content.push(data)
        else:
            self._decode(self._splitter.push(data), delta)

    def _decode(self, pieces: Sequence[tuple[str, bytes]], delta: TextDelta) -> None:
        for channel, data in pieces:
            if channel == "reasoning":
                delta.reasoning += self._reasoning.push(data)
            else:
                delta.reasoning += self._reasoning.flush()
                delta.content += self._content.push(data)

    def _end(self, delta: TextDelta) -> None:
        self._ended = True
        self._release(self._matcher.flush(), delta)
        if self._splitter is not None:
            self._decode(self._splitter.flush(), delta)
        delta.reasoning += self._reasoning.flush()
        delta.content += self._content.flush()

    def _show_logprobs(self, delta: TextDelta) -> None:
        """Show the tokens whose first byte is out: they are cut by stop strings exactly as the text is."""
        if self._splitter is not None and self._splitter.phase == "start" and not self._splitter.in_reasoning:
            if not self._ended:
                return  # an open tag may be on its way: not decided yet where these tokens belong
        shown = 0
        for index, first_byte, token in self._waiting:
            if first_byte >= self._released:
                break
            shown += 1
            reasoning = index < self.reasoning_tokens
            (delta.reasoning_logprobs if reasoning else delta.content_logprobs).append(token)
        del self._waiting[:shown]
