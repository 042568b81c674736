"""`DeepSeekModel`: the engine in this process, text in and text out, with the same rules as the server."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from pydantic import ValidationError

from deepseek_r1.config.adapters import BASE, checked_adapters
from deepseek_r1.config.base import parse_size
from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.config.speculation import Speculation
from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, ThinkFormat, TokenLogprobs, TokenOutput
from deepseek_r1.models.locate import locate_model, served_name
from deepseek_r1.models.text.chat_template import opens_thinking
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.serve.chat import encode_chat, template_messages
from deepseek_r1.serve.deployer import check_device_map
from deepseek_r1.serve.errors import field_path
from deepseek_r1.serve.output_text import OutputText, Vocabulary
from deepseek_r1.serve.sampling import sampling_params
from deepseek_r1.serve.schemas import ChatCompletionRequest, CompletionRequest, SamplingBody

Prompt = str | list[int]
Body = TypeVar("Body", bound=SamplingBody)


@dataclass(frozen=True)
class Chunk:
    """What one step of a stream added."""

    text: str
    reasoning: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class Generation:
    """A finished answer. `logprobs` has one entry per token when asked for, of the raw distribution."""

    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class DeepSeekModel:
    """A model with its engine and tokenizer in this process.

    Prompts of one call, and calls from several threads, share the engine's batches.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, config: DeepSeekConfig) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config
        engine.set_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
        self._vocabulary = Vocabulary(tokenizer.token_bytes, tokenizer.id_to_token)
        self._close_ids = tuple(tokenizer.encode("</think>\n\n", add_special_tokens=False))
        self._arrived: dict[str, deque[TokenOutput]] = {}
        self._lock = threading.Lock()
        self._ids = itertools.count()

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str] = "default",
        *,
        precision: str | None = None,
        config: DeepSeekConfig | None = None,
        memory: int | str | None = None,
        max_concurrent: int = 32,
        speculative: Speculation = "off",
        device_map: str = "auto",
        adapters: Mapping[str, str | PathLike[str]] = {},
    ) -> DeepSeekModel:
        """Load a model: a path, a hub id, or "default". `memory` (bytes, or "4GiB") bounds the process.

        `speculative` guesses tokens ahead, which changes none of them: "ngram" where a request repeats itself, "mtp" by
        the model's prediction module. `adapters` are folders of low-rank adapters by name: `model="name"` of `generate`
        and `chat` chooses one.

        `precision` is short for `config=DeepSeekConfig(precision)`. Raises `DeepSeekError` with the remedy when the
        model isn't there, isn't supported, or doesn't fit.
        """
        check_device_map(device_map)
        if config is not None and precision is not None and parse_precision(precision) != config:
            raise RequestError("precision and config disagree", param="precision", remedy="give one of them")
        config = config or parse_precision(precision or "auto")
        folders = checked_adapters(adapters, served_name(fspath(path)))
        located = locate_model(fspath(path))
        budget = parse_size(memory) if isinstance(memory, str) else memory
        engine = load_engine(
            located,
            precision=config,
            memory_bytes=budget,
            max_concurrent=max_concurrent,
            speculative=speculative,
            adapters=folders,
        )
        resolved = parse_precision(engine.precision) if config.precision_mode == "auto" else config
        return cls(engine, load_tokenizer(located), resolved)

    def __enter__(self) -> DeepSeekModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is in flight."""
        with self._lock:
            self.engine.cancel(list(self._arrived))
            self._arrived.clear()

    @overload
    def generate(self, prompt: str, *, stream: Literal[False] = False, **sampling: Any) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, stream: Literal[False] = False, **sampling: Any
    ) -> list[Generation]: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **sampling: Any) -> Iterator[Chunk]: ...
    def generate(self, prompt: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Continue a prompt (text or token ids) or a list of prompts, which run as one batch.

        `sampling` takes the fields of /v1/completions: max_tokens (default: what is left of the context), temperature
        (default 1), top_p, top_k, min_p, seed, stop, ignore_eos, logprobs, penalties, logit_bias, model (an adapter's
        name). Returns a
        `Generation` for one text, a list for a list of prompts (one list of ids is one prompt, and gives one
        `Generation`), or an iterator of `Chunk` with `stream=True`. Raises `RequestError` naming the field at fault.
        """
        single = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        body = _validated(CompletionRequest, {"prompt": prompt, "stream": stream or None, **sampling})
        prompts = [prompt] if single else list(prompt)
        ids = [self.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
        return self._answer(
            ids, body, ThinkFormat(close_ids=self._close_ids), body.logprobs, single, stream, split=False
        )

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **sampling: Any
    ) -> Generation: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **sampling: Any
    ) -> Iterator[Chunk]: ...
    def chat(self, messages: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Answer a conversation, `[{"role": "user", "content": "…"}, …]`; a list of conversations gives a list.

        `sampling` takes the fields of /v1/chat/completions, `max_thinking_tokens` included. The reasoning stands in
        `Generation.reasoning` and `Chunk.reasoning`.
        """
        single = not messages or isinstance(messages[0], Mapping)
        bodies = [
            _validated(ChatCompletionRequest, {"messages": list(conversation), "stream": stream or None, **sampling})
            for conversation in ([messages] if single else messages)
        ]
        rendered = [
            encode_chat(self.tokenizer, template_messages(body.messages), add_generation_prompt=True) for body in bodies
        ]
        body = bodies[0]
        think = ThinkFormat(close_ids=self._close_ids, starts_open=opens_thinking(rendered[0][0]))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        ids = [tokens for _, tokens in rendered]
        return self._answer(ids, body, think, logprobs, single, stream, split=True)

    def _answer(
        self,
        prompts: list[list[int]],
        body: CompletionRequest | ChatCompletionRequest,
        think: ThinkFormat,
        logprobs: int | None,
        single: bool,
        stream: bool,
        *,
        split: bool,
    ) -> Any:
        if (body.n or 1) != 1:
            raise RequestError(
                "n has no meaning here", param="n", remedy="give the prompt as often as you want answers"
            )
        if stream and not single:
            raise RequestError("stream=True takes one prompt", param="stream", remedy="start one stream per prompt")
        seed = secrets.randbits(63) if body.seed is None else body.seed
        adapter = None if body.model == BASE else body.model
        requests = []
        for index, ids in enumerate(prompts):
            params = sampling_params(
                body,
                seed=seed,
                max_tokens=_tokens_asked(body) or max(1, self.engine.max_model_len - len(ids)),
                vocab_size=self.engine.vocab_size,
                logprobs=logprobs,
                think=think,
                max_thinking_tokens=body.max_thinking_tokens if isinstance(body, ChatCompletionRequest) else None,
            )
            # Equal prompts of one call differ in their random numbers, as the choices of one request do.
            requests.append(GenerateRequest(f"local-{next(self._ids)}", ids, params, index, adapter=adapter))
        self._submit(requests)
        if stream:
            return self._stream(requests[0], split)
        done = [self._collect(request, split) for request in requests]
        return done[0] if single else done

    def _submit(self, requests: list[GenerateRequest]) -> None:
        with self._lock:
            accepted: list[str] = []
            try:
                for request in requests:
                    self.engine.submit(request)
                    accepted.append(request.request_id)
            except BaseException:
                self.engine.cancel(accepted)
                raise
            self._arrived.update({request_id: deque() for request_id in accepted})

    def _outputs(self, request_id: str) -> Iterator[TokenOutput]:
        """The outputs of one request; whoever waits for its own steps the engine for all."""
        try:
            finished = False
            while not finished:
                with self._lock:
                    mine = self._arrived[request_id]
                    if not mine:
                        for output in self.engine.step():
                            self._arrived[output.request_id].append(output)
                        continue
                    output = mine.popleft()
                finished = output.finish_reason is not None
                yield output
        finally:
            with self._lock:
                self.engine.cancel([request_id])
                self._arrived.pop(request_id, None)

    def _stream(self, request: GenerateRequest, split: bool) -> Iterator[Chunk]:
        text = OutputText(self._vocabulary, request.sampling, split=split)
        for output in self._outputs(request.request_id):
            delta = text.push([output])
            yield Chunk(delta.content, delta.reasoning, output.token_ids, output.finish_reason)

    def _collect(self, request: GenerateRequest, split: bool) -> Generation:
        text = OutputText(self._vocabulary, request.sampling, split=split)
        done = Generation(prompt_tokens=len(request.prompt_ids))
        for output in self._outputs(request.request_id):
            delta = text.push([output])
            done.text += delta.content
            done.reasoning += delta.reasoning
            done.token_ids += output.token_ids
            done.logprobs += output.logprobs
            done.finish_reason = output.finish_reason
        return done


def _tokens_asked(body: SamplingBody) -> int | None:
    newer = body.max_completion_tokens if isinstance(body, ChatCompletionRequest) else None
    return body.max_tokens if newer is None else newer


def _validated(kind: type[Body], values: dict[str, Any]) -> Body:
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = field_path(("body", *first["loc"]))
        raise RequestError(f"{param}: {first['msg']}", param=param, code="invalid_value") from None
    if body.model_extra:
        name = sorted(body.model_extra)[0]
        raise RequestError(f"there is no parameter {name!r}", param=name, remedy="see /v1/completions for the names")
    return body
