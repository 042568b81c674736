"""Token ids to text as they arrive: bytes, whole characters only, and stop strings found on bytes.

Standard library only, so that the engine can match stop strings with the same code.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterable, Sequence


class Utf8Stream:
    """Decodes UTF-8 as it arrives: the joined results equal `bytes.decode("utf-8", "replace")` of all the bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes; an unfinished one is held back."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class Detokenizer:
    """Turns token ids into text step by step, never splitting a character.

    `token_bytes` is `Tokenizer.token_bytes`; an id beyond its end (a padded embedding row) has no bytes.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._stream = Utf8Stream()

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` add, complete characters only."""
        return self._stream.push(join_tokens(self._token_bytes, ids))

    def flush(self) -> str:
        """What is left at the end of the output."""
        return self._stream.flush()


def join_tokens(token_bytes: Sequence[bytes], ids: Iterable[int]) -> bytes:
    """The bytes of `ids`; ids outside the table have none."""
    size = len(token_bytes)
    return b"".join([token_bytes[i] for i in ids if 0 <= i < size])


class StopMatcher:
    """Finds the first stop string in a stream of bytes, and holds back what may become one.

    The match is the one that is complete first, whatever the chunks: generation ends at that byte. When several stop
    strings end at the same byte, the longest one counts. The output is cut where the match begins.
    Each byte costs one step of a Knuth-Morris-Pratt automaton per stop string.
    """

    def __init__(self, stop: tuple[bytes, ...]) -> None:
        if not all(stop):
            raise ValueError("a stop string may not be empty")
        self._stop = stop
        self._failure = tuple(_failure_function(word) for word in stop)
        self._state = [0] * len(stop)
        self._held = b""
        self.matched: bytes | None = None  # the stop string that ended the output

    def push(self, data: bytes) -> tuple[bytes, bool]:
        """Take the next bytes; return those that are certain to be output, and whether a stop string is complete.

        After a match nothing more is emitted.
        """
        if self.matched is not None:
            return b"", True
        if not self._stop:
            return data, False
        buffer = self._held + data
        at = len(self._held)
        for offset, byte in enumerate(data):
            if (word := self._step(byte)) is not None:
                self.matched, self._held = word, b""
                return buffer[: at + offset + 1 - len(word)], True
        keep = max(self._state)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> bytes:
        """The bytes held back, at the end of an output in which no stop string was completed."""
        held, self._held = self._held, b""
        self._state = [0] * len(self._stop)
        return held

    def copy(self) -> StopMatcher:
        """An independent matcher in the same state."""
        other = copy.copy(self)
        other._state = list(self._state)
        return other

    def _step(self, byte: int) -> bytes | None:
        """Advance all automata by one byte; the longest stop string that this byte completes."""
        found: bytes | None = None
        for index, word in enumerate(self._stop):
            state = self._state[index]
            failure = self._failure[index]
            while state and word[state] != byte:
                state = failure[state - 1]
            if word[state] == byte:
                state += 1
            if state == len(word):
                if found is None or len(word) > len(found):
                    found = word
                state = failure[state - 1]
            self._state[index] = state
        return found


def _failure_function(word: bytes) -> tuple[int, ...]:
    """For each prefix of `word`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(word)
    length = 0
    for at in range(1, len(word)):
        while length and word[at] != word[length]:
            length = table[length - 1]
        if word[at] == word[length]:
            length += 1
        table[at] = length
    return tuple(table)
