"""Guesses from a request's own text: where its last tokens stood before, what followed there may follow again."""

from __future__ import annotations

from array import array

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.core.errors import UnsupportedError

SHORTEST = 2
"""Tokens that have to repeat before anything is guessed."""

LONGEST = 4
"""Tokens that are compared in a search; a passage found that way is followed for as long as it stays right."""

CANDIDATES = 16
"""Earlier places that a search looks at, latest first: bounds its cost where the same pair stands everywhere."""

MOST_DRAFTS = 10
"""Tokens guessed at once at most."""

LEAST_CHANCE = 0.3
"""The chance of being right from which a guess is made: a right guess saves a step, and a row more costs about a fifth
of a step with one row (its arithmetic; the weights are read once for all rows)."""

MEMORY = 8
"""Judgements over which a chance is averaged."""

START = {2: 0.3, 3: 0.5, 4: 0.6, 8: 0.8}
"""Chances before anything is known, by the least number of tokens that repeat: below what SmolLM2's free text shows
(0.46, 0.61, 0.7 and 0.9). Where they turn out lower they soon are, since every guess is judged, computed or not."""


def check_speculation(speculative: Speculation, *, modules: int, slot_state: bool, model: str = "the model") -> None:
    """Raise `UnsupportedError` where a model can't guess that way, or keeps what a wrong guess would spoil."""
    if speculative == "mtp" and not modules:
        raise UnsupportedError(
            f"{model} has no prediction module that could guess tokens ahead",
            remedy="choose --speculative ngram, or leave out --speculative",
        )
    if speculative != "off" and slot_state:
        raise UnsupportedError(
            f"{model} keeps rings or states, from which a wrong guess could not be taken back",
            remedy="leave out --speculative",
        )


class Lookup:
    """An index of a sequence's tokens, and a guess at the next ones with the chance that it is right.

    At any time the last tokens match those before some earlier `place`, `length` of them (0: there is no match), and
    the token at `place` is the guess at the next. Every token of the output judges the guess before it, also where no
    step computed it. So all of this is a function of the tokens alone, whatever the batch or the steps were, and to
    find out that guessing pays again costs nothing.

    A token takes one entry of a dictionary and 4 bytes; reading it costs at most `CANDIDATES` comparisons.
    """

    def __init__(self, tokens: list[int], output: int) -> None:
        """`tokens` is the sequence's own list, which grows; from position `output` on its tokens judge guesses."""
        self.place = 0
        self.length = 0
        self._tokens = tokens
        self._output = output
        self._latest: dict[int, int] = {}  # where a pair of tokens last ended
        self._before = array("i")  # by position: where the pair that ends there ended before that, or -1
        self._chances = dict(START)

    def guess(self, most: int) -> tuple[int, ...]:
        """The next tokens, up to `most`: as many as are all right with a chance of `LEAST_CHANCE`."""
        for at in range(len(self._before), len(self._tokens)):
            self._read(at)
        guesses: list[int] = []
        chance = 1.0
        while self.length and len(guesses) < min(most, MOST_DRAFTS):
            chance *= self._chances[_grade(self.length + len(guesses))]
            if chance < LEAST_CHANCE:
                break
            # Where the passage reaches the end of the text, it goes on with what has just been guessed.
            source = self.place + len(guesses)
            guesses.append(self._tokens[source] if source < len(self._tokens) else guesses[source - len(self._tokens)])
        return tuple(guesses)

    def _read(self, at: int) -> None:
        tokens = self._tokens
        if self.length:
            right = tokens[self.place] == tokens[at]
            grade = _grade(self.length)
            self._chances[grade] += (right - self._chances[grade]) / MEMORY
            follow = right and self.length >= LONGEST
            self.place, self.length = (self.place + 1, self.length + 1) if follow else (0, 0)
        before = -1
        if at:
            pair = tokens[at - 1] << 32 | tokens[at]
            before = self._latest.get(pair, -1)
            self._latest[pair] = at
        self._before.append(before)
        if not self.length and at >= self._output - 1:
            self._search(at)

    def _search(self, at: int) -> None:
        """Find the longest match of the tokens up to `at`; of equal ones the latest."""
        tokens, end = self._tokens, self._before[at]
        for _ in range(CANDIDATES):
            if end < 0 or self.length == LONGEST:
                return
            length = SHORTEST
            while length < min(LONGEST, end + 1) and tokens[end - length] == tokens[at - length]:
                length += 1
            if length > self.length:
                self.place, self.length = end + 1, length
            end = self._before[end]


def _grade(length: int) -> int:
    """The key of `START` that stands for a match of so many tokens."""
    return 8 if length >= 8 else min(length, 4)
