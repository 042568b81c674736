"""Splits a model's output bytes into reasoning and content, for the API (the text) and the engine (the token count).

Tags are found on bytes, because they need not be single tokens: `</think>.` may arrive as `</`, `think`, `>.`.
Standard library only.
"""

from __future__ import annotations

import copy
from typing import Literal

Channel = Literal["reasoning", "content"]
_Phase = Literal["start", "reasoning", "content"]


class ThinkSplitter:
    """Splits output into reasoning and content, whatever the chunks it arrives in.

    The rules, in terms of the whole output:

    - Reasoning opens if `starts_open` (the prompt ended inside it), or if the first non-whitespace bytes are the open
      tag. An open tag anywhere later is content. With `starts_open`, a redundant open tag at the start is swallowed.
    - The first close tag after that ends it. All that follows is content, later tags included.
    - The tags, the whitespace before the open tag, the run of newlines after the open tag (with `starts_open`: at the
      start) and the run of newlines after the close tag belong to neither channel. Nothing else is stripped.
    - A tag that never closes leaves all of the output in the reasoning.
    """

    def __init__(self, open: bytes = b"<think>", close: bytes = b"</think>", starts_open: bool = False) -> None:
        if not open or not close:
            raise ValueError("the think tags may not be empty")
        self._open = open
        self._close = close
        self._starts_open = starts_open
        self._phase: _Phase = "start"
        self._leading: list[bytes] = []  # whitespace before the first other byte: part of the answer, or of no channel
        self._pending = b""
        self._strip_newlines = starts_open
        self._seen = 0
        self.block_end: int | None = None  # the offset after the close tag, once that is complete

    @property
    def phase(self) -> _Phase:
        """`start` while the first bytes may still become an open tag, then the channel that the next byte is in."""
        return self._phase

    @property
    def in_reasoning(self) -> bool:
        """Whether reasoning is open and its close tag is not complete yet."""
        return self._phase == "reasoning" or (self._phase == "start" and self._starts_open)

    def push(self, data: bytes) -> list[tuple[Channel, bytes]]:
        """Take the next bytes; return what they decide, in order. Bytes that may begin a tag are held back."""
        self._seen += len(data)
        self._pending += data
        if self._phase == "start":
            self._decide()
        emitted: list[tuple[Channel, bytes]] = []
        if self._phase == "reasoning" and self._skip_newlines():
            at = self._pending.find(self._close)
            if at >= 0:
                self._emit(emitted, "reasoning", at)
                self._pending = self._pending[len(self._close) :]
                self.block_end = self._seen - len(self._pending)
                self._phase = "content"
                self._strip_newlines = True
            else:
                self._emit(emitted, "reasoning", len(self._pending) - self._held())
        if self._phase == "content" and self._skip_newlines():
            self._emit(emitted, "content", len(self._pending))
        return emitted

    def flush(self) -> list[tuple[Channel, bytes]]:
        """Return what was held back, at the end of the output."""
        emitted: list[tuple[Channel, bytes]] = []
        if self._phase == "start":
            self._give_up_on_open()
        if self._skip_newlines():
            self._emit(emitted, "reasoning" if self._phase == "reasoning" else "content", len(self._pending))
        return emitted

    def copy(self) -> ThinkSplitter:
        """An independent splitter in the same state."""
        other = copy.copy(self)
        other._leading = list(self._leading)
        return other

    def _decide(self) -> None:
        """Leave the start phase as soon as the first bytes are an open tag, or can no longer become one."""
        rest = self._pending.lstrip()
        if len(rest) < len(self._pending):
            self._leading.append(self._pending[: len(self._pending) - len(rest)])
            self._pending = rest
        if not rest:
            return
        if rest.startswith(self._open):
            self._leading.clear()
            self._pending = rest[len(self._open) :]
            self._phase = "reasoning"
            self._strip_newlines = True
        elif not self._open.startswith(rest):
            self._give_up_on_open()

    def _give_up_on_open(self) -> None:
        self._pending = b"".join(self._leading) + self._pending
        self._leading.clear()
        self._phase = "reasoning" if self._starts_open else "content"

    def _skip_newlines(self) -> bool:
        """Drop newlines where a channel begins; True when bytes to look at are left."""
        if self._strip_newlines:
            self._pending = self._pending.lstrip(b"\n")
            self._strip_newlines = not self._pending
        return bool(self._pending)

    def _held(self) -> int:
        """How many bytes at the end of the pending ones may begin a close tag."""
        for size in range(min(len(self._close) - 1, len(self._pending)), 0, -1):
            if self._pending.endswith(self._close[:size]):
                return size
        return 0

    def _emit(self, emitted: list[tuple[Channel, bytes]], channel: Channel, size: int) -> None:
        if size:
            emitted.append((channel, self._pending[:size]))
            self._pending = self._pending[size:]


class ThinkCounter:
    """Counts reasoning tokens, one token's bytes at a time: a token counts where its first byte falls.

    The reasoning block is a prefix of the output: from its first byte to the end of the close tag, so the tags and the
    whitespace around the open tag count as reasoning, and the newlines after the close tag as content. The first
    `reasoning_tokens` tokens are the reasoning, all others are content. A token without bytes (a special token) counts
    where the next byte would fall.
    """

    def __init__(self, open: bytes = b"<think>", close: bytes = b"</think>", starts_open: bool = False) -> None:
        self._splitter = ThinkSplitter(open, close, starts_open)
        self._offset = 0
        self._undecided = 0
        self.reasoning_tokens = 0

    @property
    def in_reasoning(self) -> bool:
        """Whether reasoning is open and its close tag is not complete yet."""
        return self._splitter.in_reasoning

    def push(self, token: bytes) -> None:
        """Count one token. While an open tag is only half there its tokens count as content, until it is complete."""
        splitter = self._splitter
        start = self._offset
        self._offset += len(token)
        splitter.push(token)
        if splitter.phase == "start" and not splitter.in_reasoning:
            self._undecided += 1
            return
        if self._undecided:
            if splitter.phase == "reasoning" or splitter.block_end is not None:
                self.reasoning_tokens += self._undecided
            self._undecided = 0
        if splitter.in_reasoning or (splitter.block_end is not None and start < splitter.block_end):
            self.reasoning_tokens += 1

    def copy(self) -> ThinkCounter:
        """An independent counter in the same state."""
        other = copy.copy(self)
        other._splitter = self._splitter.copy()
        return other
