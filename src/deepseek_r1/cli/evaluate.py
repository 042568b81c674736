"""The verb `evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from deepseek_r1.cli.terminal import EVERY_SECONDS, Progress, visible
from deepseek_r1.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from deepseek_r1.evaluate.summary import Summary
    from deepseek_r1.evaluate.targets import ModelTarget, Target

REASONING_COUNT = 50
_CELLS = 12  # width of the bar


def evaluate(config: EvaluateConfig) -> int:
    """Ask, and print the summary: a Markdown table, or JSON."""
    progress = AnswerProgress()
    try:
        summary = _generated(config, progress) if config.generates else _scored(config, progress)
    finally:
        progress.end()
    print(json.dumps(summary.to_dict(), indent=1) if config.json else visible(summary.markdown))
    return 0


def _generated(config: EvaluateConfig, progress: AnswerProgress) -> Summary:
    from deepseek_r1.evaluate import run, suites
    from deepseek_r1.evaluate.remote import UrlTarget

    if config.suite_name == "reasoning":
        questions = suites.reasoning(config.families, config.level, config.count or REASONING_COUNT, config.seed)
    elif config.suite_name == "gsm8k":
        questions = suites.number_questions(_data(config), config.count)
    else:
        questions = [each.generated for each in suites.choice_questions(_data(config), config.count)]
    target: Target
    if config.url is not None:
        target = UrlTarget(
            config.url,
            config.model,
            api_key=config.api_key,
            concurrency=config.concurrency,
            timeout=config.timeout,
        )
    else:
        target = _load(config)
    return run.evaluate(
        target,
        questions,
        samples=config.samples,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        out=_out(config),
        progress=progress.answers,
    )


def _scored(config: EvaluateConfig, progress: AnswerProgress) -> Summary:
    from deepseek_r1.evaluate import files, run, suites

    path = _data(config)
    if config.suite_name == "perplexity":
        texts = files.read_texts(path, config.count)
        sizes = {"window": config.window, "stride": config.stride}
        return run.perplexity(_load(config), texts, path.stem, **sizes, out=_out(config), progress=progress.answers)
    questions = suites.choice_questions(path, config.count)
    return run.choose(
        _load(config), questions, by_letter=config.choices == "letter", out=_out(config), progress=progress.answers
    )


def _load(config: EvaluateConfig) -> ModelTarget:
    from deepseek_r1.evaluate.targets import load_target

    return load_target(
        config.model,
        adapter=config.adapter,
        precision=config.precision,
        memory=config.memory,
        max_concurrent=config.concurrency,
        speculative=config.speculative,
    )


def _data(config: EvaluateConfig) -> Path:
    return Path(config.data or "").expanduser()


def _out(config: EvaluateConfig) -> Path | None:
    return None if config.out is None else Path(config.out).expanduser()


class AnswerProgress(Progress):
    """How many answers are there, with their rate and the time left."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._first: tuple[float, int] | None = None

    def answers(self, done: int, total: int) -> None:
        """Show that `done` of `total` are there. The first call says what was there before anything was asked."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        pause = 0.1 if self._stream.isatty() else EVERY_SECONDS
        began, before = self._first
        if before < done < total and now - self._shown < pause:
            return
        self._shown = now
        rate = (done - before) / (now - began) if now > began else 0.0
        left = (total - done) / rate if rate > 0 else None
        share = done / total
        words = f"evaluate [{'#' * int(share * _CELLS):<{_CELLS}}] {share:4.0%} {done} of {total}"
        if left is not None:
            words += f", {rate:.2f}/s, {int(left // 60)}:{int(left % 60):02} left"
        fields = {"event": "evaluate", "done": done, "total": total, "rate": round(rate, 3)}
        self._show(words, {**fields, "seconds_left": None if left is None else round(left, 1)})
