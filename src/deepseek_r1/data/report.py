"""What is in the training data: counts, lengths, and one example as the model will see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from deepseek_r1.data.examples import Example
from deepseek_r1.data.histogram import Bin, draw, make_bins
from deepseek_r1.data.tokenizer import TextTokenizer

MAX_RUNS = 24  # of the first example, each of tokens that are all trained or all not
RUN_EDGE = 12  # tokens shown at either end of a longer run


@dataclass(frozen=True)
class Counts:
    """What became of the records: `records` is the sum of the examples and of what was left out.

    Left out are the ones too long, those with nothing to train on, and duplicates if `duplicates_dropped`. `truncated`
    counts examples that were kept and cut.
    """

    records: int
    too_long: int
    untrained: int
    duplicates: int
    duplicates_dropped: bool
    truncated: int


@dataclass(frozen=True)
class Lengths:
    """Tokens per example; pXX is the length that XX of a hundred examples don't exceed."""

    min: int
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class DataReport:
    """What was loaded. `trained_share` is that of the tokens that the loss asks for.

    `first_example` is the template check: its tokens, with the trained ones in brackets.
    """

    counts: Counts
    examples: int
    tokens: int
    trained_tokens: int
    trained_share: float
    lengths: Lengths
    histogram: tuple[Bin, ...]
    first_example: str
    digest: str

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self) | {"histogram": [asdict(group) for group in self.histogram]}

    def as_text(self) -> str:
        """The report as a short table for a terminal, and the first example below it."""
        counts, lengths = self.counts, self.lengths
        duplicates = "  left out, duplicates" if counts.duplicates_dropped else "  among them duplicates"
        rows = [
            ("records", f"{counts.records:,}"),
            ("  left out, too long", f"{counts.too_long:,}"),
            ("  left out, nothing to train on", f"{counts.untrained:,}"),
            ("examples", f"{self.examples:,}"),
            ("  among them truncated", f"{counts.truncated:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("  trained", f"{self.trained_tokens:,} ({100 * self.trained_share:.1f} %)"),
            ("tokens per example, least", f"{lengths.min:,}"),
            ("  half have at most", f"{lengths.p50:,}"),
            ("  90 % have at most", f"{lengths.p90:,}"),
            ("  99 % have at most", f"{lengths.p99:,}"),
            ("  most", f"{lengths.max:,}"),
            ("digest", self.digest[:16]),
        ]
        rows.insert(3 if counts.duplicates_dropped else 4, (duplicates, f"{counts.duplicates:,}"))
        table = [f"{name:<34}{value:>18}" for name, value in rows]
        return "\n".join([*table, "", "first example, [trained] tokens in brackets:", self.first_example])

    def as_svg(self) -> str:
        """The histogram of lengths as an SVG document, readable on light and dark pages."""
        words = f"{self.examples:,} examples, {self.tokens:,} tokens, {100 * self.trained_share:.1f} % trained"
        return draw(self.histogram, words)


def make_report(counts: Counts, examples: Sequence[Example], tokenizer: TextTokenizer, digest: str) -> DataReport:
    """The report of one or more examples."""
    lengths = sorted(len(example.ids) for example in examples)
    tokens, trained = sum(lengths), sum(sum(example.trained) for example in examples)
    return DataReport(
        counts=counts,
        examples=len(examples),
        tokens=tokens,
        trained_tokens=trained,
        trained_share=trained / tokens,
        lengths=Lengths(
            min=lengths[0],
            p50=percentile(lengths, 50),
            p90=percentile(lengths, 90),
            p99=percentile(lengths, 99),
            max=lengths[-1],
        ),
        histogram=make_bins(Counter(lengths)),
        first_example=mark_trained(examples[0], tokenizer),
        digest=digest,
    )


def percentile(ordered: Sequence[int], share: int) -> int:
    """The smallest of the ascending values that at least `share` of a hundred don't exceed (nearest rank)."""
    return ordered[max(0, -(-share * len(ordered) // 100) - 1)]


def mark_trained(example: Example, tokenizer: TextTokenizer) -> str:
    """The tokens of an example as text, a line for each run of trained or other ones; trained ones in brackets.

    A space is written as ·, a line break as ↵. Long runs are shortened in their middle, and many runs at the end.
    """
    runs = [
        (trained, [token for token, _ in run])
        for trained, run in groupby(zip(example.ids, example.trained, strict=True), key=lambda pair: pair[1])
    ]
    lines = []
    for trained, ids in runs[:MAX_RUNS]:
        left_out = len(ids) - 2 * RUN_EDGE
        shown = ids if left_out <= 1 else [*ids[:RUN_EDGE], *ids[-RUN_EDGE:]]
        words = [_visible(tokenizer.decode([token], skip_special_tokens=False)) for token in shown]
        words = [f"[{word}]" for word in words] if trained else words
        if len(shown) < len(ids):
            words.insert(RUN_EDGE, f"… {left_out} more …")
        lines.append(" ".join(words))
    if len(runs) > MAX_RUNS:
        lines.append(f"… {len(runs) - MAX_RUNS} more parts …")
    return "\n".join(lines)


def _visible(token: str) -> str:
    token = token.replace(" ", "·").replace("\n", "↵")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in token)
