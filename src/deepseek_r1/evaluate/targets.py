"""Who is asked: the form of questions and answers, and a model with its engine in this process."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.core.errors import RequestError, UnsupportedError
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.models.adapters import WEIGHTS_FILE, load_adapter
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.text.chat_template import opens_thinking
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer

ADAPTER = "evaluated"
"""What the adapter of `load_target` is called in its engine."""


@dataclass(frozen=True)
class Ask:
    """One user message, and how to sample its answer. `name` tells the question in errors."""

    name: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """An answer: its text with the thinking in its tags, its tokens, and whether it was cut off at `max_tokens`."""

    text: str
    tokens: int
    truncated: bool


class Target(Protocol):
    """Something that answers. `identity` tells it from others whose answers may differ, in values that JSON has."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What stands in the settings of its answers."""
        ...

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """Every ask's place in the list with its answer, as they come. Raises `DeepSeekError`."""
        ...


class ModelTarget:
    """A model in this process, asked in batches. No other request may be in its engine meanwhile.

    `name` says which weights these are; after training has changed them it must be another one, for results are kept
    by it. `adapter` is one that the engine has been told of (`Engine.use_adapter`).
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, name: str, adapter: str | None = None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.adapter = adapter
        self._name = name
        self._ids = itertools.count()
        engine.set_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name, the adapter's name, the precision and the path of the kernels."""
        engine = self.engine
        return {"model": self._name, "adapter": self.adapter, "precision": engine.precision, "path": engine.path}

    @property
    def decoder(self) -> Decoder:
        """The model itself."""
        return self.engine.runner.decoder

    def prompt(self, message: str) -> tuple[str, list[int]]:
        """A user message through the chat template: the text and its ids. Raises `UnsupportedError` without one."""
        if self.tokenizer.chat_template is None:
            raise UnsupportedError(
                "this model has no chat template, so it can't be asked",
                remedy="evaluate an instruction-tuned model, or its --suite perplexity",
            )
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": message}])
        return text, self.tokenizer.encode(text, add_special_tokens=False)

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """See `Target.answers`. Raises `RequestError` for one that doesn't fit the context."""
        waiting = iter(enumerate(asks))
        running: dict[str, tuple[int, bool, list[int]]] = {}
        try:
            while True:
                # Twice the batch, so that a slot that becomes free is taken in the next step.
                while len(running) < 2 * self.engine.scheduler.max_concurrent:
                    place, ask = next(waiting, (0, None))
                    if ask is None:
                        break
                    request_id, opened = self._submit(ask)
                    running[request_id] = place, opened, []
                if not running:
                    return
                for output in self.engine.step():
                    place, opened, ids = running[output.request_id]
                    ids += output.token_ids
                    if output.finish_reason is not None:
                        del running[output.request_id]
                        text = ("<think>\n" if opened else "") + self.tokenizer.decode(ids)
                        yield place, Reply(text, len(ids), output.finish_reason == "length")
        finally:
            self.engine.cancel(list(running))

    def _submit(self, ask: Ask) -> tuple[str, bool]:
        """Queue an ask: its id in the engine, and whether the prompt ends inside the thinking."""
        text, ids = self.prompt(ask.prompt)
        request_id = f"evaluate-{next(self._ids)}"
        sampling = SamplingParams(ask.max_tokens, ask.seed, ask.temperature)
        try:
            self.engine.submit(GenerateRequest(request_id, ids, sampling, adapter=self.adapter))
        except RequestError as error:
            remedy = "lower --max-tokens, or give more --memory" if error.code == "context_length_exceeded" else ""
            raise RequestError(f"{ask.name}: {error.message}", remedy=remedy or error.remedy) from None
        return request_id, opens_thinking(text)


def load_target(
    model: str,
    *,
    adapter: str | Path | None = None,
    precision: str = "auto",
    memory: int | None = None,
    max_concurrent: int = 16,
    speculative: Speculation = "off",
) -> ModelTarget:
    """Load a model (path, hub id or "default"), and PEFT's files of an adapter over it. Raises `DeepSeekError`."""
    path = locate_model(model)
    engine = load_engine(
        path, precision=precision, memory_bytes=memory, max_concurrent=max_concurrent, speculative=speculative
    )
    name = f"{model} {_files_digest(path)}"
    if adapter is not None:
        load_adapter(engine.runner.decoder, ADAPTER, adapter)
        engine.use_adapter(ADAPTER)
        with (Path(adapter) / WEIGHTS_FILE).open("rb") as file:
            name += f" + {adapter} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    return ModelTarget(engine, load_tokenizer(path), name, None if adapter is None else ADAPTER)


def _files_digest(path: Path) -> str:
    """Changes with a model's files: of their names, sizes and times, which are read in no time."""
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
