"""`deepseek-r1 evaluate` over a tiny model: every suite, the adapter, and the settings that are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_r1.cli.evaluate import AnswerProgress
from deepseek_r1.cli.main import main
from deepseek_r1.config.evaluate import EvaluateConfig
from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.models.adapters import add_adapter, factors, save_adapter
from deepseek_r1.models.loading import load_decoder
from support.byte_model import byte_model

QUIZ = [{"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2, "unused": None} for i in range(5)]


@pytest.fixture
def command(models_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    folder = str(byte_model(models_folder))
    capsys.readouterr()  # writing it shows a bar

    def run(*words: str) -> tuple[Any, list[dict[str, Any]]]:
        code = main(["evaluate", folder, "--memory", "300MiB", "--json", *words])
        out, errors = capsys.readouterr()
        assert code == 0, errors
        return json.loads(out), [json.loads(line) for line in errors.splitlines()]

    return run


def quiz(folder: Path) -> str:
    path = folder / "quiz.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in QUIZ))
    return str(path)


def test_reasoning(command: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    words = ("--suite", "reasoning:gcd,number_sequence", "--count", "3", "--samples", "2", "--max-tokens", "5")
    found, told = command(*words, "--out", str(tmp_path / "out"))
    assert [(row["family"], row["n"], row["samples"]) for row in found["rows"]] == [
        ("gcd", 3, 2),
        ("number_sequence", 3, 2),
        ("all", 6, 2),
    ]
    assert found["rows"][2]["tokens"] == 60 and found["rows"][2]["truncated"] == 12
    assert told[0]["done"] == 0 and told[-1]["done"] == told[-1]["total"] == 12
    again, told = command(*words, "--out", str(tmp_path / "out"))
    assert again["rows"] == found["rows"] and [line["done"] for line in told] == [12]


def test_choices_and_an_adapter(command: Callable[..., Any], models_folder: Path, tmp_path: Path) -> None:
    decoder = load_decoder(byte_model(models_folder), parse_precision("fp32"), pack=True)
    config = LoraConfig(r=4, targets=("all-linear",))
    add_adapter(decoder, "own", config)
    for part in factors(decoder, "own").values():
        part.lora_B.weight.data.normal_(0, 0.4, generator=torch.Generator().manual_seed(2))
    save_adapter(decoder, "own", tmp_path / "adapter", config, "tiny")
    words = ["--suite", "multiple-choice", "--data", quiz(tmp_path)]
    texts = {}
    for name, more in {
        "letter": [],
        "adapter": ["--adapter", str(tmp_path / "adapter")],
        "text": ["--choices", "text"],
        "generated": ["--choices", "generated", "--max-tokens", "3"],
    }.items():
        found, _ = command(*words, *more, "--out", str(tmp_path / name))
        (row,) = found["rows"]
        assert (row["suite"], row["family"], row["n"]) == ("multiple-choice", "quiz", 5)
        lines = (tmp_path / name / "answers.jsonl").read_text().splitlines()
        texts[name] = [json.loads(line)["text"] for line in lines]
        if name != "generated":
            by_place = {int(line["place"]) - 1: line for line in map(json.loads, lines)}
            rights = [line["text"] == QUIZ[i]["choices"][QUIZ[i]["answer"]] for i, line in by_place.items()]
            assert row["mean"] == sum(rights) / 5
    assert set(texts["letter"]) <= {"yes", "no"}
    # Over one folder, answers with and without the adapter are told apart.
    command(*words, "--out", str(tmp_path / "letter"), "--adapter", str(tmp_path / "adapter"))
    assert len((tmp_path / "letter" / "answers.jsonl").read_text().splitlines()) == 10


def test_numbers_and_perplexity(command: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    found, _ = command("--suite", "gsm8k", "--data", str(path), "--max-tokens", "4", "--temperature", "0")
    assert found["rows"][0]["family"] == "sums" and found["rows"][0]["n"] == 1
    text = tmp_path / "words.txt"
    text.write_text("some words to be weighed, and some more of them")
    found, _ = command("--suite", "perplexity", "--data", str(text), "--window", "16", "--stride", "8")
    (row,) = found["rows"]
    assert row["tokens"] == len(text.read_text()) - 1
    assert row["n"] == 1 + -(-(len(text.read_text()) - 16) // 8)
    assert row["mean"] > 1


def test_the_table(models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--suite", "multiple-choice", "--data", quiz(tmp_path), "--memory", "300MiB"]
    assert main(["evaluate", str(byte_model(models_folder)), *words]) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| suite | family | n |") and rule.startswith("| --- | --- | ---: |")
    assert row.startswith("| multiple-choice | quiz | 5 | 1 |")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--suite", "gsm8"], "there is no suite 'gsm8' (did you mean 'gsm8k'?)"),
        (["--suite", "gsm8k"], "gsm8k needs a file"),
        (["--suite", "gsm8k:x", "--data", "f"], "gsm8k has no families"),
        (["--data", "f"], "are made, not read"),
        (["--level", "5"], "level must be an integer from 1 to 4"),
        (["--samples", "2", "--temperature", "0"], "all samples are the same"),
        (["--suite", "perplexity", "--data", "f", "--samples", "2"], "answers that are generated"),
        (["--suite", "perplexity", "--data", "f", "--window", "8", "--stride", "8"], "leaves no context"),
        (["--suite", "perplexity", "--data", "f", "--url", "http://x"], "log-probabilities of given text"),
        (["--suite", "multiple-choice", "--data", "f", "--url", "http://x"], "or --choices generated"),
        (["--url", "http://x", "--adapter", "a"], "in this process"),
        (["--url", "x:80"], "is not an http address"),
        (["--suite", "reasoning:gdc"], "did you mean 'gcd'"),
        (["--choices", "guess"], "choices must be one of letter, text, generated"),
    ],
)
def test_settings_that_are_refused(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert problem in error and ("mend" in error or "must be" in error)


def test_files_that_are_not_there(models_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--suite", "gsm8k", "--data", "/no/such.jsonl"]) == 1
    assert "/no/such.jsonl: cannot be read: No such file" in capsys.readouterr().err
    words = ["--suite", "reasoning:gcd", "--count", "1", "--adapter", "/no/adapter", "--memory", "300MiB"]
    assert main(["evaluate", str(byte_model(models_folder)), *words]) == 1
    assert "adapter_config.json" in capsys.readouterr().err


def test_families_and_what_generates() -> None:
    config = EvaluateConfig(suite="reasoning: gcd, products,gcd,")
    assert config.suite_name == "reasoning" and config.families == ("gcd", "products") and config.generates
    assert EvaluateConfig(suite="multiple-choice", data="f").generates is False
    assert EvaluateConfig(suite="multiple-choice", data="f", choices="generated").generates is True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_elsewhere() -> None:
    now = [100.0]
    for stream in (Terminal(), io.StringIO()):
        progress = AnswerProgress(stream, lambda: now[0])
        progress.answers(20, 100)  # that many were there
        for done in range(21, 101):
            now[0] += 0.5
            progress.answers(done, 100)
        progress.end()
        if stream.isatty():
            lines = stream.getvalue().split("\r\x1b[K")
            assert "60 of 100, 2.00/s, 0:20 left" in lines[41]
            assert lines[-2].startswith("evaluate [############] 100% 100 of 100")
        else:
            lines = [json.loads(line) for line in stream.getvalue().splitlines()]
            assert lines[0] == {"event": "evaluate", "done": 20, "total": 100, "rate": 0.0, "seconds_left": None}
            assert lines[1] == {"event": "evaluate", "done": 30, "total": 100, "rate": 2.0, "seconds_left": 35.0}
            assert [line["done"] for line in lines] == [20, 30, 40, 50, 60, 70, 80, 90, 100]
