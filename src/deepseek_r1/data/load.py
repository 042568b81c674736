"""From data files to the examples that are trained on, with a report of what was found and left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.examples import Example, TrainOn, encode_record
from deepseek_r1.data.records import read_records
from deepseek_r1.data.report import Counts, DataReport, make_report
from deepseek_r1.data.tokenizer import TextTokenizer

TooLong = Literal["skip", "truncate", "error"]


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files. `digest` is the same wherever the same ids are trained on."""

    examples: tuple[Example, ...]
    report: DataReport
    digest: str


def load_examples(
    paths: Sequence[str | Path],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    train_on: TrainOn = "assistant",
    too_long: TooLong = "skip",
    drop_duplicates: bool = False,
) -> Dataset:
    """All examples of the files, none longer than `max_length` tokens.

    `too_long` says what becomes of a longer one: left out, cut at its end, or an error. Examples with nothing to train
    on are left out; exact duplicates (same ids, same ones trained) stay unless `drop_duplicates`. All are counted.

    Raises `ConfigError` for a setting out of its range, what `read_records` and `encode_record` raise, and `DataError`
    when no example is left.
    """
    _require_settings(paths, max_length, train_on, too_long)
    examples: list[Example] = []
    seen: set[bytes] = set()
    records = skipped = truncated = untrained = duplicates = 0
    for path in paths:
        for record in read_records(path):
            records += 1
            example = encode_record(record, tokenizer, train_on=train_on)
            length = len(example.ids)
            if length > max_length:
                if too_long == "error":
                    raise DataError(
                        record.place,
                        "",
                        f"{length} tokens, more than max_length = {max_length}",
                        remedy="raise max_length, or choose too_long=skip or too_long=truncate",
                    )
                if too_long == "skip":
                    skipped += 1
                    continue
                example = Example(example.ids[:max_length], example.trained[:max_length], example.place)
            if not any(example.trained):
                untrained += 1
                continue
            key = digest_of([example])
            if key in seen:
                duplicates += 1
                if drop_duplicates:
                    continue
            seen.add(key)
            truncated += length > max_length
            examples.append(example)
    if not examples:
        raise DataError(
            ", ".join(str(path) for path in paths),
            "",
            f"no example is left of {records}: {skipped} longer than max_length = {max_length}, "
            f"{untrained} with nothing to train on",
            remedy="raise max_length, or check that the records hold answers of the assistant",
        )
    counts = Counts(records, skipped, untrained, duplicates, drop_duplicates, truncated)
    digest = digest_of(examples).hex()
    return Dataset(tuple(examples), make_report(counts, examples, tokenizer, digest), digest)


def digest_of(examples: Iterable[Example]) -> bytes:
    """SHA-256 over each example's length (8 bytes), ids (8 each) and mask (1 each), little-endian: not over places."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.array([len(example.ids), *example.ids], dtype="<i8").tobytes())
        digest.update(bytes(example.trained))
    return digest.digest()


def _require_settings(paths: Sequence[str | Path], max_length: int, train_on: str, too_long: str) -> None:
    if not paths:
        raise ConfigError("no data file is named", remedy="give one or more .jsonl, .json or .parquet files")
    if max_length < 2:
        raise ConfigError(f"max_length: {max_length} tokens hold nothing to learn", remedy="allow two or more")
    for name, value, choices in (
        ("train_on", train_on, get_args(TrainOn)),
        ("too_long", too_long, get_args(TooLong)),
    ):
        if value not in choices:
            raise ConfigError(f"{name}: {value!r} is not a choice", remedy=f"choices: {', '.join(choices)}")
