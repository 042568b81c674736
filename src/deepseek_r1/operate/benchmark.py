"""Measuring throughput, time to first token and inter-token latency of anything that streams tokens."""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deepseek_r1.core.errors import DeepSeekError

# Frequent English words: nearly every tokenizer has each as one token, so n words make a prompt of about n tokens.
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its about "
    "into than them can only other new some could time these two may then do first any my now such like our over man "
    "me even most made after also did many before must through back years where much your way well down should because "
    "each just those people how too little state good very make world still own see men work long get here between"
).split()


@dataclass
class Sample:
    """One request as its client saw it. Times are seconds of the monotonic clock; `counted` tells real token counts."""

    started: float = 0.0
    events: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    def event(self) -> None:
        """Note that tokens arrived now."""
        self.events.append(time.monotonic())

    @property
    def first_token_seconds(self) -> float | None:
        """From sending the request to its first tokens."""
        return self.events[0] - self.started if self.events else None

    @property
    def inter_token_seconds(self) -> float | None:
        """Mean time per token after the first event; None where everything came in one event.

        Servers send several tokens in one event, so the tokens are spread evenly over the time they arrived in.
        """
        if len(self.events) < 2 or self.output_tokens < 2:
            return None
        return (self.events[-1] - self.events[0]) / (self.output_tokens - 1)


class Target(Protocol):
    """Something that streams tokens for a prompt, safe to call from several threads."""

    def prompt(self, words: Sequence[str], tokens: int) -> Any:
        """A prompt of `tokens` tokens, as near as this target can make it, from at least as many words."""

    def run(self, prompt: Any, sample: Sample) -> None:
        """Send `prompt`, call `sample.event()` as tokens arrive, set the token counts. Raises `DeepSeekError`."""


def prompt_words(seed: int, index: int, count: int) -> list[str]:
    """`count` words that depend on (seed, index) alone; different from the first, so that no cached prefix helps."""
    return random.Random(f"{seed}/{index}").choices(WORDS, k=count)


def measure_level(
    target: Target, prompts: Sequence[Any], concurrency: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Send `prompts` with `concurrency` of them in flight, and return the level's figures (see `summarise`)."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    finished: queue.SimpleQueue[Sample] = queue.SimpleQueue()
    for prompt in prompts:
        waiting.put(prompt)

    def work() -> None:
        while True:
            try:
                prompt = waiting.get_nowait()
            except queue.Empty:
                return
            finished.put(run_one(target, prompt))

    started = time.monotonic()
    for _ in range(min(concurrency, len(prompts))):
        threading.Thread(target=work, daemon=True).start()  # daemon: Ctrl-C need not wait for streams to end
    samples = []
    for done in range(1, len(prompts) + 1):
        samples.append(finished.get())
        progress(done)
    return {"concurrency": concurrency, **summarise(samples, time.monotonic() - started)}


def run_one(target: Target, prompt: Any) -> Sample:
    """One request; an error becomes part of the sample, so that the level goes on."""
    sample = Sample(started=time.monotonic())
    try:
        target.run(prompt, sample)
    except DeepSeekError as error:
        sample.error = str(error)
    except Exception as error:  # a dead worker thread would leave the level waiting for ever
        sample.error = f"{type(error).__name__}: {error}"
    sample.ended = time.monotonic()
    return sample


def summarise(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Figures over all requests of a level that took `seconds`: rates per second, latencies in milliseconds."""
    good = [sample for sample in samples if sample.error is None]
    output = sum(sample.output_tokens for sample in good)
    prompt = sum(sample.prompt_tokens for sample in good)
    return {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "errors": sorted({sample.error for sample in samples if sample.error is not None})[:3],
        "seconds": seconds,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "output_tokens_per_second": output / seconds,
        "total_tokens_per_second": (prompt + output) / seconds,
        "requests_per_second": len(good) / seconds,
        "time_to_first_token_ms": spread([sample.first_token_seconds for sample in good]),
        "inter_token_ms": spread([sample.inter_token_seconds for sample in good]),
        "request_ms": spread([sample.ended - sample.started for sample in good]),
    }


def spread(seconds: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds of the values that are there; None where there is none."""
    values = sorted(1000 * value for value in seconds if value is not None)
    if not values:
        return None
    return {"mean": math.fsum(values) / len(values)} | {f"p{q}": percentile(values, q) for q in (50, 95, 99)}


def percentile(ordered: Sequence[float], q: float) -> float:
    """The `q`-th percentile of sorted values, interpolated linearly between neighbours."""
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
