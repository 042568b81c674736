from __future__ import annotations

import json
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.data.examples import Example, encode_record
from deepseek_r1.data.histogram import MAX_BINS, Bin, draw, make_bins
from deepseek_r1.data.records import Record
from deepseek_r1.data.report import MAX_RUNS, Counts, DataReport, make_report, mark_trained, percentile
from support.small_text import small_backend, small_tokenizer

SPACE = "{http://www.w3.org/2000/svg}"
TOKENIZER = small_tokenizer(backend=small_backend())
COUNTS = Counts(records=130, too_long=10, untrained=19, duplicates=3, duplicates_dropped=False, truncated=2)


def example(length: int, trained: int) -> Example:
    return Example((65,) * length, (False,) * (length - trained) + (True,) * trained, "")


def report(counts: Counts = COUNTS) -> DataReport:
    return make_report(counts, [example(length, length // 2) for length in range(100, 0, -1)], TOKENIZER, "ab" * 32)


def test_numbers() -> None:
    found = report()
    assert (found.examples, found.tokens, found.trained_tokens) == (100, 5050, 2500)
    assert found.trained_share == pytest.approx(2500 / 5050)
    lengths = found.lengths
    assert (lengths.min, lengths.p50, lengths.p90, lengths.p99, lengths.max) == (1, 50, 90, 99, 100)
    assert sum(group.count for group in found.histogram) == 100


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_percentiles_are_the_least_that_hold_their_share(values: list[int], share: int) -> None:
    values.sort()
    found = percentile(values, share)
    assert sum(value <= found for value in values) * 100 >= share * len(values)
    assert sum(value < found for value in values) * 100 < share * len(values)


def test_json_is_plain() -> None:
    found = report().as_json()
    assert json.loads(json.dumps(found)) == found | {"histogram": list(found["histogram"])}
    assert found["counts"]["too_long"] == 10 and found["lengths"]["p90"] == 90
    assert found["histogram"][0] == {"low": 0, "high": 4, "count": 4}


def test_text() -> None:
    text = report().as_text()
    table, first = text.split("\n\n")
    rows = [line.rsplit("  ", 1) for line in table.splitlines()]
    values = {name.strip(): value.strip() for name, value in rows}
    assert values["records"] == "130" and values["left out, too long"] == "10" and values["examples"] == "100"
    assert values["trained"] == "2,500 (49.5 %)" and values["99 % have at most"] == "99"
    assert values["among them duplicates"] == "3" and values["digest"] == "ab" * 8
    assert max(map(len, table.splitlines())) <= 60
    assert first.splitlines()[0].startswith("first example")
    dropped = report(Counts(133, 10, 20, 3, True, 2)).as_text()
    assert dropped.index("left out, duplicates") < dropped.index("examples")


def test_the_first_example_is_shown_as_the_model_sees_it() -> None:
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "over 1\n"}]
    shown = mark_trained(encode_record(Record({"messages": messages}, ""), TOKENIZER), TOKENIZER)
    before, trained, after = shown.splitlines()
    assert before.replace(" ", "") == "<|im_start|>user↵the·fox<|im_end|>↵<|im_start|>assistant↵"
    assert trained.replace("] [", "").replace(" ", "") == "[over·1↵<|im_end|>]"
    assert after == "↵"


def test_long_examples_are_shown_in_part() -> None:
    letter = TOKENIZER.encode("1", add_special_tokens=False)[0]
    ids, trained = (letter,) * 130, (False,) * 100 + (True,) * 30
    before, after = mark_trained(Example(ids, trained, ""), TOKENIZER).splitlines()
    assert before == " ".join(["1"] * 12 + ["… 76 more …"] + ["1"] * 12)
    assert after == " ".join(["[1]"] * 12 + ["… 6 more …"] + ["[1]"] * 12)
    many = Example((letter,) * 200, (False, True) * 100, "")
    lines = mark_trained(many, TOKENIZER).splitlines()
    assert len(lines) == MAX_RUNS + 1 and lines[-1] == f"… {200 - MAX_RUNS} more parts …"
    escape = TOKENIZER.encode("\x1b", add_special_tokens=False)
    assert mark_trained(Example(tuple(escape), (False,), ""), TOKENIZER) == "\N{REPLACEMENT CHARACTER}"


@given(st.dictionaries(st.integers(1, 100_000), st.integers(1, 50), min_size=1, max_size=30))
def test_every_length_is_in_its_group(counts: dict[int, int]) -> None:
    bins = make_bins(Counter(counts))
    assert 1 <= len(bins) <= MAX_BINS
    assert [group.high + 1 for group in bins[:-1]] == [group.low for group in bins[1:]]
    assert len({group.high - group.low for group in bins}) == 1
    for group in bins:
        assert group.count == sum(count for length, count in counts.items() if group.low <= length <= group.high)
    assert bins[0].count and bins[-1].count


def test_the_picture_shows_every_group() -> None:
    found = report()
    root = ElementTree.fromstring(found.as_svg())
    bars = [element for element in root.iter(f"{SPACE}rect") if element.get("class") == "bar"]
    assert len(bars) == len(found.histogram)
    heights = [float(bar.get("height", "")) for bar in bars]
    counts = [group.count for group in found.histogram]
    assert heights == pytest.approx([count / max(counts) * max(heights) for count in counts], abs=0.1)
    assert bars[1].findtext(f"{SPACE}title") == "5 to 9 tokens: 5 examples"
    texts = [element.text for element in root.iter(f"{SPACE}text")]
    assert texts[0] == "100 examples, 5,050 tokens, 49.5 % trained"
    assert {"tokens per example", "examples", "0", "5"} <= set(texts)
    width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
    for bar in bars:
        x, y, across, up = (float(bar.get(name, "")) for name in ("x", "y", "width", "height"))
        assert 0 <= x and x + across <= width and 0 <= y and y + up <= height
    style = root.findtext(f"{SPACE}style") or ""
    assert "currentColor" in style and "prefers-color-scheme: dark" in style
    assert "http" not in style and root.find(f".//{SPACE}image") is None


def test_a_picture_of_one_group() -> None:
    assert make_bins({7: 3}) == (Bin(7, 7, 3),)
    root = ElementTree.fromstring(draw([Bin(7, 7, 1)], "1 < 2"))
    assert root.findtext(f"{SPACE}text") == "1 < 2"
