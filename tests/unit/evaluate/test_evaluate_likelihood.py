"""Log-probabilities of given text against transformers, window by window, and choices by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.core.errors import ConfigError, RequestError, UnsupportedError
from deepseek_r1.data.errors import DataError
from deepseek_r1.evaluate import likelihood, run
from deepseek_r1.evaluate.likelihood import Scored, choice_sequences, token_logprobs, windows
from deepseek_r1.evaluate.question import ChoiceQuestion
from deepseek_r1.evaluate.targets import ModelTarget
from deepseek_r1.models.adapters import add_adapter, factors
from deepseek_r1.models.text.tokenizer import byte_level_bytes
from support.byte_model import ALPHABET, OPENS, byte_model

Make = Callable[..., ModelTarget]
TEXT = "The quick brown fox jumps over the lazy dog; so it goes. " * 4


def reference(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    """log p of each id but the first, by transformers, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


def test_log_probabilities_are_those_of_transformers(target: Make, models_folder: Path) -> None:
    mine = target()
    sequences = [Scored(tuple(range(40, 90)), 1), Scored(tuple(range(90, 70, -1)), 15), Scored((5, 6), 1)]
    found = list(token_logprobs(mine, sequences))
    for sequence, values in zip(sequences, found, strict=True):
        want = reference(byte_model(models_folder), sequence.ids)[sequence.start - 1 :]
        assert values == pytest.approx(want.tolist(), abs=2e-4)
    assert -20 < min(map(min, found)) < max(map(max, found)) < -0.01, "the model is not indifferent"


def test_groups_change_no_bit(target: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = target()
    sequences = [Scored((*range(20), i), 5 + i) for i in range(9)] + [Scored(tuple(range(i, 60)), 2) for i in range(9)]
    together = list(token_logprobs(mine, sequences))
    monkeypatch.setattr(likelihood, "STEP_TOKENS", 1)
    assert list(token_logprobs(mine, sequences)) == together
    assert [next(token_logprobs(mine, [each])) for each in sequences] == together


def test_an_adapter_is_felt_and_left_in_place_for_nobody(target: Make) -> None:
    mine = target()
    sequence = [Scored(tuple(range(30, 60)), 1)]
    plain = list(token_logprobs(mine, sequence))
    add_adapter(mine.decoder, "own", LoraConfig(r=4, targets=("all-linear",)))
    for part in factors(mine.decoder, "own").values():
        part.lora_B.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        part.lora_B.refresh()
    mine.engine.use_adapter("own")
    assert list(token_logprobs(mine, sequence)) == plain
    adapted = ModelTarget(mine.engine, mine.tokenizer, "tiny", "own")
    changed = list(token_logprobs(adapted, sequence))
    assert max(abs(a - b) for a, b in zip(changed[0], plain[0], strict=True)) > 0.1
    assert not mine.decoder.adapters.of(30)
    assert adapted.identity != mine.identity


@given(st.integers(0, 70), st.integers(2, 20), st.integers(1, 19))
def test_windows_score_every_token_once_with_as_much_context_as_they_hold(length: int, size: int, stride: int) -> None:
    stride = min(stride, size - 1)
    ids = list(range(length))
    seen = []
    for number, window in enumerate(windows("7", ids, size, stride)):
        assert window.place == f"7:{number}"
        inside, start = window.scored.ids, window.scored.start
        assert 1 <= start < len(inside) <= size
        assert list(inside) == list(range(inside[0], inside[0] + len(inside)))
        assert number == 0 or len(inside) == size
        assert number == 0 or len(inside) - start <= stride
        seen += inside[start:]
    assert seen == ids[1:]


def test_perplexity_is_that_of_transformers_over_the_same_windows(
    target: Make, models_folder: Path, tmp_path: Path
) -> None:
    mine = target()
    texts = [("1", TEXT), ("2", "short"), ("3", "x")]
    summary = run.perplexity(mine, texts, "foxes", window=64, stride=24, out=tmp_path)
    (row,) = summary.rows
    loss = tokens = 0.0
    for _, text in texts:
        ids = mine.tokenizer.encode(text)
        assert len(ids) == len(text.encode()), "tokens are bytes"
        at = 1
        while at < len(ids):
            end = min(at + 24, len(ids)) if at > 1 else min(64, len(ids))
            begin = max(0, end - 64)
            logs = reference(byte_model(models_folder), tuple(ids[begin:end]))
            loss -= float(logs[-(end - at) :].sum())
            tokens += end - at
            at = end
    assert row.tokens == tokens == sum(len(text) - 1 for _, text in texts)
    assert row.mean == pytest.approx(math.exp(loss / tokens), rel=1e-4)
    assert row.low < row.mean < row.high
    assert (row.suite, row.family, row.samples, row.truncated) == ("perplexity", "foxes", 1, 0)
    assert summary.settings["window"] == 64
    again = run.perplexity(mine, texts, "foxes", window=64, stride=24, out=tmp_path)
    assert again.rows == summary.rows


def test_windows_that_do_not_fit(target: Make) -> None:
    mine = target()
    assert run.perplexity(mine, [("1", TEXT)], "x").settings["window"] == 512, "the model's context"
    for sizes in ({"window": 513}, {"window": 8, "stride": 8}, {"stride": 512}):
        with pytest.raises(ConfigError, match="don't fit"):
            run.perplexity(mine, [("1", TEXT)], "x", **sizes)
    with pytest.raises(DataError, match="two tokens"):
        run.perplexity(mine, [("1", "x"), ("2", "")], "x")


QUESTIONS = [
    ChoiceQuestion("quiz", str(i), f"Question {i}?", ("red", "dark green", "blue", "no"), i % 4) for i in range(6)
]


def by_hand(folder: Path, prompt: str, answer: str) -> float:
    """log p of an answer behind a prompt, where tokens are bytes."""
    places = {byte_level_bytes(letter)[0]: place for place, letter in enumerate(ALPHABET)}
    ids = tuple(places[byte] for byte in (prompt + answer).encode())
    return float(reference(folder, ids)[-len(answer.encode()) :].sum())


@pytest.mark.parametrize("by_letter", [True, False])
def test_choices_are_the_likeliest_by_transformers(by_letter: bool, target: Make, models_folder: Path) -> None:
    summary = run.choose(target(), QUESTIONS, by_letter=by_letter)
    right = 0
    for question in QUESTIONS:
        if by_letter:
            logs = [by_hand(byte_model(models_folder), f"<{question.listed}>", letter) for letter in "ABCD"]
        else:
            logs = [by_hand(byte_model(models_folder), f"<{question.question}>", c) / len(c) for c in question.choices]
        right += logs.index(max(logs)) == question.answer
    (row,) = summary.rows
    assert (row.suite, row.family, row.n, row.samples) == ("multiple-choice", "quiz", 6, 1)
    assert row.mean == right / 6
    assert row.tokens == 6 * (4 if by_letter else sum(map(len, QUESTIONS[0].choices)))


def test_letters_take_one_pass_of_the_prompt(target: Make) -> None:
    mine = target()
    sequences = choice_sequences(mine, QUESTIONS[0], True)
    assert len({each.ids[:-1] for each in sequences}) == 1
    assert {each.start for each in sequences} == {len(sequences[0].ids) - 1}


def test_thinking_that_the_template_opens_is_closed(target: Make) -> None:
    mine = target(OPENS)
    sequence = choice_sequences(mine, QUESTIONS[0], False)[1]
    assert mine.tokenizer.decode(sequence.ids) == "<Question 0?><think>\n\n</think>\n\ndark green"
    assert mine.tokenizer.decode(sequence.ids[sequence.start :]) == "dark green"


def test_tokens_that_join_prompt_and_choice_are_scored_whole(target: Make) -> None:
    """One choice's first letter merges with the prompt's last: from there on, every sequence is scored."""
    mine = target()

    class Merging:
        chat_template = mine.tokenizer.chat_template
        apply_chat_template = staticmethod(mine.tokenizer.apply_chat_template)

        @staticmethod
        def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [ord(c) for c in text.replace(">r", "\x07")]

    mine.tokenizer = Merging  # type: ignore[assignment]
    red, green, *_ = choice_sequences(mine, QUESTIONS[0], False)
    prompt = "<Question 0?>"
    assert (red.start, green.start) == (len(prompt) - 1, len(prompt) - 1)
    assert red.ids[red.start :] == tuple(map(ord, "\x07ed")) and green.ids[green.start] == ord(">")


def test_what_does_not_fit_the_context(target: Make) -> None:
    mine = target()
    assert len(next(token_logprobs(mine, [Scored(tuple([7] * 513), 1)]))) == 512
    with pytest.raises(RequestError, match="longer than the model's context of 512"):
        next(token_logprobs(mine, [Scored(tuple([7] * 514), 1)]))


def test_a_model_without_a_chat_template(target: Make) -> None:
    base = target(None)
    with pytest.raises(UnsupportedError, match="no chat template"):
        run.choose(base, QUESTIONS)
    assert run.perplexity(base, [("1", TEXT)], "x").rows[0].n == 1
