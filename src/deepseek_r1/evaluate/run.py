"""Evaluations: every question that has no result yet is put to the target, and all results become a summary."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.tasks.problem import Problem
from deepseek_r1.evaluate.journal import Journal, Key, Result, settings_digest
from deepseek_r1.evaluate.likelihood import choice_sequences, token_logprobs, windows
from deepseek_r1.evaluate.question import ChoiceQuestion, Question, reasoning_question
from deepseek_r1.evaluate.summary import Summary, summarise, write
from deepseek_r1.evaluate.targets import Ask, ModelTarget, Target

Progress = Callable[[int, int], None]
"""Told how many results are there, and how many there will be; first before anything is asked."""

DEFAULT_WINDOW = 1024


def evaluate(
    target: Target,
    problems: Iterable[Question | Problem],
    *,
    samples: int = 1,
    temperature: float = 0.6,
    max_tokens: int = 1024,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Put each problem to the target `samples` times, and judge the answers: a row for each suite and family.

    An answer that was cut off at `max_tokens` is wrong. A sample's seed is a function of `seed`, the problem's place
    and the sample's number. With `out`, results are kept there and not asked for again, and the summary is written.
    Raises `ConfigError` for no problems, and what the target raises.
    """
    questions = [each if isinstance(each, Question) else reasoning_question(each) for each in problems]
    settings = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed, **target.identity}
    keys: list[Key] = []
    asks: list[Ask] = []
    for question in questions:
        digest = settings_digest(settings, question.prompt, question.reference)
        for sample in range(samples):
            keys.append(Key(question.suite, question.family, question.place, sample, digest))
            name = f"{question.suite} {question.family} {question.place}"
            asks.append(Ask(name, question.prompt, max_tokens, temperature, sample_seed(seed, name, sample)))

    def answered(todo: Sequence[int]) -> Iterator[Result]:
        for place, reply in target.answers([asks[index] for index in todo]):
            index = todo[place]
            score = 0.0 if reply.truncated else questions[index // samples].grade(reply.text)
            yield keys[index].result(score, reply.tokens, truncated=reply.truncated, text=reply.text)

    return _complete(keys, answered, {"samples": samples, **settings}, out, progress)


def choose(
    target: ModelTarget,
    questions: Sequence[ChoiceQuestion],
    *,
    by_letter: bool = True,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Take each question's likeliest choice: by the log-probability of its letter, or of its text per UTF-8 byte.

    Equal ones go to the first. `out` and errors are as for `evaluate`.
    """
    settings = {"choices": "letter" if by_letter else "text", **target.identity}
    keys = [
        Key(
            "multiple-choice",
            each.family,
            each.place,
            0,
            settings_digest(settings, each.question, *each.choices, str(each.answer)),
        )
        for each in questions
    ]

    def chosen(todo: Sequence[int]) -> Iterator[Result]:
        sequences = (one for index in todo for one in choice_sequences(target, questions[index], by_letter))
        logprobs = token_logprobs(target, sequences)
        for index in todo:
            question = questions[index]
            sums = []
            tokens = 0
            for choice in question.choices:
                values = next(logprobs)
                tokens += len(values)
                sums.append(math.fsum(values) / (1 if by_letter else len(choice.encode())))
            best = sums.index(max(sums))
            yield keys[index].result(float(best == question.answer), tokens, text=question.choices[best])

    return _complete(keys, chosen, settings, out, progress)


def perplexity(
    target: ModelTarget,
    texts: Sequence[tuple[str, str]],
    family: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """exp of the mean -log p of the tokens of all texts (each with its place), in sliding windows; one row, `family`.

    Every token but the first of each text is scored once (where the tokenizer puts a token before texts, that is the
    first). `window` and `stride` are in tokens. Raises `ConfigError` where they don't fit each other or the model,
    `DataError` for texts without two tokens. `out` is as for `evaluate`.
    """
    most = target.decoder.config.max_position
    window = window or min(DEFAULT_WINDOW, most)
    stride = stride or max(1, window // 2)
    if not 1 <= stride < window <= most:
        raise ConfigError(
            f"windows of {window} tokens, {stride} apart, don't fit a context of {most}",
            remedy="give a --window within the context, and a smaller --stride",
        )
    settings = {"window": window, "stride": stride, **target.identity}
    parts = [part for place, text in texts for part in windows(place, target.tokenizer.encode(text), window, stride)]
    if not parts:
        raise DataError(family, "", "has no text of two tokens or more", remedy="give a longer text")
    keys = [
        Key("perplexity", family, part.place, 0, settings_digest(settings, _ids_digest(part.scored.ids)))
        for part in parts
    ]

    def scored(todo: Sequence[int]) -> Iterator[Result]:
        found = token_logprobs(target, (parts[index].scored for index in todo))
        for index, values in zip(todo, found, strict=True):
            yield keys[index].result(-math.fsum(values), len(values))

    return _complete(keys, scored, settings, out, progress)


def sample_seed(seed: int, name: str, sample: int) -> int:
    """The seed of one sample, below 2**31, which every server takes."""
    digest = hashlib.sha256(f"{seed}/{name}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _complete(
    keys: Sequence[Key],
    produce: Callable[[Sequence[int]], Iterator[Result]],
    settings: Mapping[str, Any],
    out: Path | None,
    progress: Progress | None,
) -> Summary:
    """Results for all keys: those in the folder, and what `produce` makes of the places of the others."""
    if not keys:
        raise ConfigError("there is nothing to evaluate", remedy="ask for more problems")
    with Journal(out) as journal:
        todo = [index for index, key in enumerate(keys) if key not in journal.results]
        done = len(keys) - len(todo)
        if progress is not None:
            progress(done, len(keys))
        for result in produce(todo) if todo else ():
            journal.append(result)
            done += 1
            if progress is not None:
                progress(done, len(keys))
        summary = summarise([journal.results[key] for key in keys], settings)
        if out is not None:
            write(summary, out)
    return summary


def _ids_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(repr(ids).encode()).hexdigest()
