from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.models.text.detokenizer import Detokenizer, StopMatcher, Utf8Stream

TABLE = [bytes([value]) for value in range(256)] + [b"", "中".encode(), "👩‍👩‍👧".encode(), b"ab"]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(at, len(data)) for at in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_a_character_is_never_split() -> None:
    detokenizer = Detokenizer(TABLE)
    assert [detokenizer.push([byte]) for byte in "é👍!".encode()] == ["", "é", "", "", "", "👍", "!"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_shows_at_the_end() -> None:
    detokenizer = Detokenizer(TABLE)
    assert detokenizer.push([0xE4, 0xB8]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push([0x61]) == "a"  # nothing of the old output is left


def test_ids_outside_the_table_have_no_bytes() -> None:
    assert Detokenizer(TABLE).push([0x61, 10**6, -1, 0x62]) == "ab"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(TABLE) + 3), max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_any_chunking_of_ids_equals_decoding_the_whole(ids: list[int], cuts: list[int]) -> None:
    edges = [0, *sorted(min(at, len(ids)) for at in cuts), len(ids)]
    detokenizer = Detokenizer(TABLE)
    text = "".join(detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(edges)) + detokenizer.flush()
    whole = b"".join(TABLE[i] for i in ids if i < len(TABLE))
    assert text == whole.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode()[:-1])),
    st.lists(st.integers(0, 40), max_size=10),
)
def test_any_chunking_of_bytes_equals_decoding_the_whole(data: bytes, cuts: list[int]) -> None:
    stream = Utf8Stream()
    assert "".join(map(stream.push, cut(data, cuts))) + stream.flush() == data.decode("utf-8", "replace")


def reference(output: bytes, stop: list[bytes]) -> tuple[bytes, bytes | None]:
    """The first prefix of the output that ends with a stop string, cut where the longest such one begins."""
    for end in range(len(output) + 1):
        if ending := [word for word in stop if output[:end].endswith(word)]:
            word = max(ending, key=len)
            return output[: end - len(word)], word
    return output, None


def run(chunks: list[bytes], stop: list[bytes]) -> tuple[bytes, bytes | None]:
    matcher = StopMatcher(tuple(stop))
    emitted = b""
    for chunk in chunks:
        new, matched = matcher.push(chunk)
        emitted += new
        assert matched == (matcher.matched is not None)
    return emitted + (b"" if matcher.matched else matcher.flush()), matcher.matched


@pytest.mark.parametrize(
    ("output", "stop", "expected"),
    [
        (b"one\ntwo", [b"\n"], (b"one", b"\n")),
        (b"one two", [b"\n"], (b"one two", None)),
        (b"aab", [b"ab"], (b"a", b"ab")),
        (b"abcd", [b"abcd", b"bc"], (b"a", b"bc")),
        (b"xabc", [b"bc", b"abc"], (b"x", b"abc")),
        (b"ababac!", [b"abac"], (b"ab", b"abac")),
        (b"STO", [b"STOP"], (b"STO", None)),
        ("中文。再见".encode(), ["。".encode()], ("中文".encode(), "。".encode())),
    ],
)
def test_stop_strings(output: bytes, stop: list[bytes], expected: tuple[bytes, bytes | None]) -> None:
    assert run([output], stop) == expected
    assert run([bytes([byte]) for byte in output], stop) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(list(b"abc")), max_size=40).map(bytes),
    st.lists(st.lists(st.sampled_from(list(b"abc")), min_size=1, max_size=6).map(bytes), max_size=4),
    st.lists(st.integers(0, 40), max_size=10),
)
def test_any_chunking_stops_at_the_same_byte(output: bytes, stop: list[bytes], cuts: list[int]) -> None:
    assert run(cut(output, cuts), stop) == reference(output, stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher((b"<|end|>", b"\n\n"))
    assert matcher.push(b"hello <|e") == (b"hello ", False)
    assert matcher.push(b"x\n") == (b"<|ex", False)
    assert matcher.push(b"y") == (b"\ny", False)
    branch = matcher.copy()
    assert matcher.push(b"\n\nz") == (b"", True)
    assert matcher.push(b"more") == (b"", True)
    assert branch.push(b"\nz") == (b"\nz", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="may not be empty"):
        StopMatcher((b"a", b""))


def test_long_stop_strings_on_a_long_output_take_linear_time() -> None:
    matcher = StopMatcher((b"a" * 2000 + b"b",))
    for _ in range(2000):
        assert not matcher.push(b"a" * 50)[1]
    assert matcher.push(b"b") == (b"", True)
