from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.models.text.think import ThinkCounter, ThinkSplitter

# Pieces that make tags, halves of tags and newlines likely.
PIECES = st.sampled_from(
    [b"<think>", b"</think>", b"<", b"</", b"think", b">", b"\n", b" ", b"a", b"\xe4\xb8\xad", b"<think", b"</t", b"\t"]
)
OUTPUTS = st.lists(PIECES, max_size=14).map(b"".join)


def reference(output: bytes, starts_open: bool) -> tuple[bytes, bytes, int]:
    """(reasoning, content, end of the block) of a whole output, by regular expressions alone."""
    opened = re.match(rb"\s*<think>", output)
    if not opened and not starts_open:
        return b"", output, 0
    start = opened.end() if opened else 0
    close = re.compile(rb"</think>").search(output, start)
    if not close:
        return re.sub(rb"\A\n+", b"", output[start:]), b"", len(output) + 1
    reasoning = re.sub(rb"\A\n+", b"", output[start : close.start()])
    return reasoning, re.sub(rb"\A\n+", b"", output[close.end() :]), close.end()


def split(chunks: list[bytes], starts_open: bool) -> tuple[bytes, bytes]:
    splitter = ThinkSplitter(starts_open=starts_open)
    parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.flush()
    assert all(data for _, data in parts)
    channels = [channel for channel, _ in parts]
    assert channels == sorted(channels, reverse=True)  # all reasoning comes before all content
    return tuple(b"".join(data for channel, data in parts if channel == name) for name in ("reasoning", "content"))


def cut(output: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(at, len(output)) for at in cuts), len(output)]
    return [output[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("output", "starts_open", "reasoning", "content"),
    [
        (b"plain", False, b"", b"plain"),
        (b"<think>a</think>b", False, b"a", b"b"),
        (b"<think>\na\n</think>\n\nb", False, b"a\n", b"b"),
        (b"\n <think>a</think>b", False, b"a", b"b"),
        (b"so <think>a</think>b", False, b"", b"so <think>a</think>b"),
        (b"a</think>b", False, b"", b"a</think>b"),
        (b"a</think>b", True, b"a", b"b"),
        (b"\n<think>\na</think>b", True, b"a", b"b"),
        (b"<think>never", False, b"never", b""),
        (b"never", True, b"never", b""),
        (b"<think>a</think>b</think><think>c", False, b"a", b"b</think><think>c"),
        (b"<think>a<think>b</think>c", False, b"a<think>b", b"c"),
        (b"<think></think>c", False, b"", b"c"),
        (b"<thin", False, b"", b"<thin"),
        (b"a</thin", True, b"a</thin", b""),
        (b"<think>a</</think>.", False, b"a</", b"."),
        (b"  indented", False, b"", b"  indented"),
        (b"  indented", True, b"  indented", b""),
        (b"", True, b"", b""),
    ],
)
def test_split_of_a_whole_output(output: bytes, starts_open: bool, reasoning: bytes, content: bytes) -> None:
    assert split([output], starts_open) == (reasoning, content)
    assert split([bytes([byte]) for byte in output], starts_open) == (reasoning, content)
    assert reference(output, starts_open)[:2] == (reasoning, content)


@settings(max_examples=400, deadline=None)
@given(OUTPUTS, st.booleans(), st.lists(st.integers(0, 60), max_size=8))
def test_any_chunking_gives_the_same_split(output: bytes, starts_open: bool, cuts: list[int]) -> None:
    assert split(cut(output, cuts), starts_open) == reference(output, starts_open)[:2]


@settings(max_examples=400, deadline=None)
@given(OUTPUTS, st.booleans(), st.lists(st.integers(0, 60), max_size=12))
def test_a_token_counts_where_its_first_byte_falls(output: bytes, starts_open: bool, cuts: list[int]) -> None:
    tokens = cut(output, cuts)  # repeated cuts give tokens without bytes, as special tokens are
    end = reference(output, starts_open)[2]
    offsets = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
    counter = ThinkCounter(starts_open=starts_open)
    for token in tokens:
        counter.push(token)
    assert counter.reasoning_tokens == sum(offset < end for offset in offsets)


def test_tags_that_span_tokens() -> None:
    counter = ThinkCounter()
    seen = []
    for token in [b"<", b"think", b">", b"hm", b"", b"</", b"think", b">.", b" yes", b""]:
        counter.push(token)
        seen.append((counter.reasoning_tokens, counter.in_reasoning))
    # The three tokens of the open tag count once it is complete; `>.` begins in the tag; the last two are the answer.
    assert seen == [
        (0, False),
        (0, False),
        (3, True),
        (4, True),
        (5, True),
        (6, True),
        (7, True),
        (8, False),
        (8, False),
        (8, False),
    ]


def test_an_answer_without_reasoning_counts_none() -> None:
    counter = ThinkCounter()
    for token in [b" ", b"<", b"b", b">"]:
        counter.push(token)
    assert (counter.reasoning_tokens, counter.in_reasoning) == (0, False)


def test_a_prompt_that_opens_the_tag_counts_from_the_first_token() -> None:
    counter = ThinkCounter(starts_open=True)
    assert counter.in_reasoning
    for token in [b"\n", b"a", b"</think>", b"b"]:
        counter.push(token)
    assert (counter.reasoning_tokens, counter.in_reasoning) == (3, False)


@settings(max_examples=100, deadline=None)
@given(OUTPUTS, OUTPUTS, OUTPUTS, st.booleans())
def test_copies_go_their_own_way(head: bytes, one: bytes, two: bytes, starts_open: bool) -> None:
    counter, splitter = ThinkCounter(starts_open=starts_open), ThinkSplitter(starts_open=starts_open)
    counter.push(head)
    first = splitter.push(head)
    for tail in (one, two):
        branch, parts = counter.copy(), splitter.copy()
        branch.push(tail)
        whole = ThinkCounter(starts_open=starts_open)
        whole.push(head)
        whole.push(tail)
        assert (branch.reasoning_tokens, branch.in_reasoning) == (whole.reasoning_tokens, whole.in_reasoning)
        got = first + parts.push(tail) + parts.flush()
        for channel, expected in zip(("reasoning", "content"), reference(head + tail, starts_open), strict=False):
            assert b"".join(data for name, data in got if name == channel) == expected


def test_other_tags_and_empty_tags() -> None:
    splitter = ThinkSplitter(b"[T]", b"[/T]")
    assert splitter.push(b"[T]x[/T]y") == [("reasoning", b"x"), ("content", b"y")]
    with pytest.raises(ValueError, match="may not be empty"):
        ThinkSplitter(b"", b"</think>")


def test_a_million_spaces_take_linear_time() -> None:
    splitter = ThinkSplitter()
    for _ in range(200_000):
        assert splitter.push(b" ") == []
    assert splitter.push(b"<think>x") == [("reasoning", b"x")]


def test_only_the_standard_library_is_imported() -> None:
    code = (
        "import sys; import deepseek_r1.models.text.think, deepseek_r1.models.text.detokenizer; "
        "print([n for n in ('torch', 'numpy', 'jinja2', 'tokenizers') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
