from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.examples import Example, encode_record
from deepseek_r1.data.load import Dataset, digest_of, load_examples
from deepseek_r1.data.records import read_records
from support.small_text import small_backend, small_tokenizer

TOKENIZER = small_tokenizer(backend=small_backend())
SHORT = {"prompt": "the quick", "completion": " brown fox"}
LONG = {"prompt": "the", "completion": " fox" * 40}
LATE = {"prompt": "the fox " * 20, "completion": "jumps"}
SILENT = {"messages": [{"role": "user", "content": "hi"}]}


def write(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def load(paths: list[Path], **settings: Any) -> Dataset:
    return load_examples(paths, TOKENIZER, **{"max_length": 20} | settings)


def test_examples_come_in_the_order_of_their_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", SHORT, {"text": "over the dog"})
    two = write(tmp_path / "two.json", {"text": "lazy"})
    data = load([two, one])
    expected = [encode_record(record, TOKENIZER) for path in (two, one) for record in read_records(path)]
    assert list(data.examples) == expected
    assert [example.place for example in data.examples] == [f"{two}:1", f"{one}:1", f"{one}:2"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SHORT, LONG, SILENT, LATE, SHORT, {"text": "lazy"}, SHORT)
    kept = load([path])
    assert [example.place[-1] for example in kept.examples] == ["1", "5", "6", "7"]
    counts = kept.report.counts
    assert (counts.records, counts.too_long, counts.untrained, counts.duplicates) == (7, 2, 1, 2)
    assert (counts.truncated, counts.duplicates_dropped) == (0, False)

    dropped = load([path], drop_duplicates=True)
    assert [example.place[-1] for example in dropped.examples] == ["1", "6"]
    assert dropped.report.counts.duplicates == 2

    cut = load([path], too_long="truncate")
    # Of the late answer nothing is left within the limit.
    assert [example.place[-1] for example in cut.examples] == ["1", "2", "5", "6", "7"]
    counts = cut.report.counts
    assert (counts.truncated, counts.too_long, counts.untrained) == (1, 0, 2)
    (whole,) = (encode_record(record, TOKENIZER) for record in read_records(path) if record.place.endswith(":2"))
    assert cut.examples[1] == Example(whole.ids[:20], whole.trained[:20], whole.place)

    for data in (kept, dropped, cut):
        counts = data.report.counts
        left_out = counts.too_long + counts.untrained + counts.duplicates * counts.duplicates_dropped
        assert counts.records == len(data.examples) + left_out

    with pytest.raises(DataError, match=r"a.jsonl:2: \d+ tokens, more than max_length = 20"):
        load([path], too_long="error")


def test_the_limit_is_included(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SHORT)
    (example,) = load([path]).examples
    length = len(example.ids)
    assert load([path], max_length=length, too_long="error").examples == (example,)
    with pytest.raises(DataError, match="no example is left of 1: 1 longer than"):
        load([path], max_length=length - 1)


def test_train_on_reaches_the_examples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SHORT)
    share = [load([path], train_on=choice).report.trained_tokens for choice in ("assistant", "all")]
    (example,) = load([path]).examples
    assert share == [sum(example.trained), len(example.ids) - 1]


def test_the_digest_is_over_ids_and_masks_alone(tmp_path: Path) -> None:
    first = load([write(tmp_path / "a.jsonl", SHORT, {"text": "lazy"})])
    expected = hashlib.sha256()
    for example in first.examples:
        expected.update(struct.pack(f"<q{len(example.ids)}q", len(example.ids), *example.ids))
        expected.update(struct.pack(f"<{len(example.ids)}?", *example.trained))
    assert first.digest == first.report.digest == expected.hexdigest()
    assert load([write(tmp_path / "b.jsonl", SHORT, {"text": "lazy"})]).digest == first.digest
    assert load([write(tmp_path / "c.jsonl", {"text": "lazy"}, SHORT)]).digest != first.digest
    assert load([tmp_path / "a.jsonl"], train_on="all").digest != first.digest
    assert digest_of([]) == hashlib.sha256().digest()
    # The length stands before the ids, so examples can't run into each other.
    one, two = Example((1, 2), (False, True), ""), Example((1,), (False,), "")
    assert digest_of([one, two]) != digest_of([two, one])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 1}, "max_length: 1"),
        ({"train_on": "user"}, "train_on: 'user' is not a choice"),
        ({"too_long": "cut"}, "too_long: 'cut' is not a choice"),
    ],
)
def test_settings_outside_their_range(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        load([tmp_path / "not-read.jsonl"], **settings)
    assert error.value.remedy


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data file"):
        load([])
    path = write(tmp_path / "a.jsonl", SILENT, LONG)
    with pytest.raises(DataError) as error:
        load([path, path])
    assert error.value.message == (
        f"{path}, {path}: no example is left of 4: 2 longer than max_length = 20, 2 with nothing to train on"
    )
