"""One choice's text is the same whatever the steps its tokens arrive in."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from deepseek_r1.engine.request import SamplingParams, ThinkFormat, TokenLogprobs, TokenOutput
from deepseek_r1.serve.output_text import LOWEST_LOGPROB, OutputText, TextDelta, Vocabulary

BYTES = [bytes([i]) for i in range(256)]
SPECIAL = 256
VOCABULARY = Vocabulary([*BYTES, b""], lambda i: "<|end|>")

pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "\n", " ", "a", "é", "世", "🙂", "STOP", "ST", "OP"]),
    max_size=14,
)


def outputs(data: bytes, cuts: list[int]) -> list[list[TokenOutput]]:
    """The tokens of `data` (one per byte, and an end) in groups that end at `cuts`."""
    ids = [*data, SPECIAL]
    single = [TokenOutput("r", [i], [TokenLogprobs(-float(n))]) for n, i in enumerate(ids)]
    single[-1].finish_reason = "stop"
    edges = [0, *sorted({cut % len(ids) for cut in cuts} - {0}), len(ids)]
    return [single[start:end] for start, end in itertools.pairwise(edges)]


def collect(groups: list[list[TokenOutput]], *, split: bool, starts_open: bool = False) -> tuple[TextDelta, int]:
    params = SamplingParams(100, stop=(b"STOP",), logprobs=0, think=ThinkFormat(starts_open=starts_open))
    text = OutputText(VOCABULARY, params, split=split)
    whole = TextDelta()
    for group in groups:
        delta = text.push(group)
        assert not (delta.reasoning and whole.content), "reasoning after content"
        whole.reasoning += delta.reasoning
        whole.content += delta.content
        whole.reasoning_logprobs += delta.reasoning_logprobs
        whole.content_logprobs += delta.content_logprobs
    return whole, text.reasoning_tokens


@settings(max_examples=300, deadline=None)
@given(pieces, st.lists(st.integers(0, 99), max_size=12), st.booleans(), st.booleans())
def test_steps_do_not_matter(words: list[str], cuts: list[int], split: bool, starts_open: bool) -> None:
    data = "".join(words).encode()
    at_once = collect(outputs(data, []), split=split, starts_open=starts_open)
    assert collect(outputs(data, cuts), split=split, starts_open=starts_open) == at_once
    one_by_one = collect(outputs(data, list(range(len(data) + 1))), split=split, starts_open=starts_open)
    assert one_by_one == at_once


@settings(max_examples=300, deadline=None)
@given(pieces, st.lists(st.integers(0, 99), max_size=12))
def test_unsplit_text_is_what_stands_before_the_stop_string(words: list[str], cuts: list[int]) -> None:
    said = "".join(words)
    whole, _ = collect(outputs(said.encode(), cuts), split=False)
    expected = said.partition("STOP")[0]
    assert whole.content == expected
    # The tokens are those of the text, byte for byte, each at the place of the character it belongs to.
    assert b"".join(token.chosen.data or b"" for token in whole.content_logprobs) == expected.encode()
    places = [place for place, character in enumerate(expected) for _ in character.encode()]
    assert [token.offset for token in whole.content_logprobs] == places


@settings(max_examples=200, deadline=None)
@given(pieces, st.lists(st.integers(0, 99), max_size=12), st.booleans())
def test_logprobs_cover_the_split_text(words: list[str], cuts: list[int], starts_open: bool) -> None:
    said = "".join(words)
    whole, reasoning_tokens = collect(outputs(said.encode(), cuts), split=True, starts_open=starts_open)
    tokens = [*whole.reasoning_logprobs, *whole.content_logprobs]
    assert b"".join(token.chosen.data or b"" for token in tokens) == said.partition("STOP")[0].encode()
    assert len(whole.reasoning_logprobs) <= reasoning_tokens


def test_tokens_without_text() -> None:
    shown = VOCABULARY.show(SPECIAL, float("-inf"))
    assert (shown.text, shown.data, shown.logprob) == ("<|end|>", None, LOWEST_LOGPROB)
    assert VOCABULARY.show(9999, -1.0).text == "<9999>"
    assert VOCABULARY.show(0xE4, -1.0).text == "bytes:\\xe4"
