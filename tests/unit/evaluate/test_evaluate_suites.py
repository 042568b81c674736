"""What suites ask, and what is refused in their files, with the line at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.tasks.families import FAMILIES, OUTSIDE, problem_at
from deepseek_r1.evaluate import suites
from deepseek_r1.evaluate.files import read_texts


def written(folder: Path, *lines: Any, name: str = "quiz.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_reasoning_takes_what_is_held_out() -> None:
    pytest.importorskip("reasoning_gym")
    found = suites.reasoning(("gcd", "letter_counting"), 2, 5, 7)
    assert [question.family for question in found] == ["gcd"] * 5 + ["letter_counting"] * 5
    for question in found:
        family, level, seed, index = question.place.split("/")
        problem = problem_at((family, int(level), int(seed), int(index)))
        assert problem is not None and problem.question == question.prompt
        assert (level, seed) == ("2" if family == "gcd" else "0", "7")
        if family in FAMILIES:
            assert FAMILIES[family].held_out(problem.item.metadata)
        assert question.grade(f"<think>\nhm\n</think>\n{question.reference}") == 1.0
        assert question.grade("no idea") == 0.0
    assert suites.reasoning(("gcd",), 2, 5, 7) == found[:5]
    everything = suites.reasoning((), 1, 1, 0)
    assert [question.family for question in everything] == [*FAMILIES, *OUTSIDE]
    with pytest.raises(ConfigError, match="gdc"):
        suites.reasoning(("gdc",), 1, 1, 0)


def test_questions_with_numbers(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        "",
        {"question": "Half?", "answer": "#### 1,000.5", "more": 1},
    )
    first, second = suites.number_questions(path, None)
    assert (first.suite, first.family, first.place, first.reference) == ("gsm8k", "quiz", "1", "5")
    assert (second.place, second.reference) == ("3", "1,000.5")
    assert first.prompt == f"2 + 3?\n\n{suites.NUMBER_ALONE}"
    assert first.grade("5 apples") == 1.0 and first.grade("6") == 0.0
    assert second.grade("1000.50") == 1.0
    assert len(suites.number_questions(path, 1)) == 1


def test_questions_with_choices(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"question": "Capital of France?", "choices": ["Rome", "Paris"], "answer": "b"},
        {"question": "1?", "choices": ["1", "2", "3"], "answer": 0},
    )
    first, second = suites.choice_questions(path, None)
    assert (first.answer, second.answer, first.place, first.family) == (1, 0, "1", "quiz")
    assert first.listed == "Capital of France?\n\nA. Rome\nB. Paris\n\nAnswer with the letter alone."
    question = first.generated
    assert (question.prompt, question.reference, question.suite) == (first.listed, "B", "multiple-choice")
    assert question.grade("B") == 1.0 and question.grade("Paris") == 1.0 and question.grade("A") == 0.0


GOOD = {"question": "q", "answer": "#### 1"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "quiz.jsonl:2: is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "quiz.jsonl:2: is not JSON"),
        ("[" * 100_000, "quiz.jsonl:2: is not JSON"),
        ("[1]", "quiz.jsonl:2: a list, not an object"),
        ({"answer": "#### 1"}, "quiz.jsonl:2: question: is missing"),
        ({"question": 5, "answer": "#### 1"}, "quiz.jsonl:2: question: must be text"),
        ({"question": " ", "answer": "#### 1"}, "quiz.jsonl:2: question: must be text"),
        ({"question": "q", "answer": "1"}, "quiz.jsonl:2: answer: has no number behind ####"),
        ({"question": "q", "answer": "#### x"}, "quiz.jsonl:2: answer: has no number behind ####"),
        ({"question": "q", "answer": "#### " + "9" * 5000}, "quiz.jsonl:2: answer: has no number behind ####"),
        ({"question": "q" * (1 << 20), "answer": "#### 1"}, "quiz.jsonl:2: a line of more than 1048576 bytes"),
    ],
)
def test_lines_with_numbers_that_are_refused(line: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as found:
        suites.number_questions(written(tmp_path, GOOD, line), None)
    assert "####" in found.value.remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choices": ["one"]}, "choices: must be a list of two to 26"),
        ({"choices": ["x"] * 27}, "choices: must be a list of two to 26"),
        ({"choices": "AB"}, "choices: must be a list of two to 26"),
        ({"choices": ["a", 2]}, r"choices\[1\]: must be text"),
        ({"answer": 2}, "answer: names none"),
        ({"answer": -1}, "answer: names none"),
        ({"answer": True}, "answer: names none"),
        ({"answer": "C"}, "answer: names none"),
        ({"answer": "?"}, "answer: names none"),
        ({"answer": "AB"}, "answer: names none"),
        ({"answer": ""}, "answer: names none"),
        ({"answer": 0.0}, "answer: names none"),
    ],
)
def test_lines_with_choices_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "q", "choices": ["a", "b"], "answer": 0} | change)
    with pytest.raises(DataError, match=f"quiz.jsonl:1: {words}"):
        suites.choice_questions(path, None)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no record"):
        suites.number_questions(written(tmp_path, ""), None)
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            suites.number_questions(path, None)
        with pytest.raises(DataError, match="cannot be read"):
            read_texts(path.with_suffix(""), None)


def test_texts(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffone\r\ntwo é".encode())
    assert read_texts(plain, None) == [("1", "one\r\ntwo é")]
    records = written(tmp_path, {"text": "one"}, {"text": "two"}, name="b.jsonl")
    assert read_texts(records, None) == [("1", "one"), ("2", "two")]
    assert read_texts(records, 1) == [("1", "one")]
    with pytest.raises(DataError, match=r"b\.jsonl:1: text: is missing"):
        read_texts(written(tmp_path, {"prompt": "a", "completion": "b"}, name="b.jsonl"), None)
    plain.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="byte 2 is not UTF-8"):
        read_texts(plain, None)


def test_a_text_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match="more than 64 MiB"):
        read_texts(path, None)
