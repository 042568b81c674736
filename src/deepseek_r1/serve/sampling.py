"""From a request's body to the engine's sampling parameters; what is unsupported or unknown in it is found here."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.request import SamplingParams, ThinkFormat
from deepseek_r1.serve.messages import Ready
from deepseek_r1.serve.schemas import RequestBody, SamplingBody

log = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing logits by them overflows."""

IGNORED = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"})
"""Fields without effect on the answer that clients send as a matter of course: no log line."""

_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value == "none",
    "functions": lambda value: value == [],
    "function_call": lambda value: value == "none",
    "response_format": lambda value: isinstance(value, dict) and value.get("type") == "text",
    "audio": lambda value: False,
    "modalities": lambda value: value == ["text"],
    "prediction": lambda value: False,
    "web_search_options": lambda value: False,
    "best_of": lambda value: value == 1 and not isinstance(value, bool),
    "suffix": lambda value: value == "",
}
"""Fields that are understood but not supported, and the values of them that ask for nothing. Null never does."""


def unsupported(param: str, what: str = "") -> RequestError:
    """The 400 of something understood that this server does not do."""
    return RequestError(f"{param} is not supported{what}", param=param, code="unsupported_parameter")


def check_extra_fields(body: RequestBody) -> None:
    """Raise for understood but unsupported fields; name unknown ones in one log line."""
    extra = body.model_extra or {}
    for name, harmless in _HARMLESS.items():
        if extra.get(name) is not None and not harmless(extra[name]):
            raise unsupported(name)
    unknown = [name for name in extra if name not in IGNORED and name not in _HARMLESS]
    if unknown:
        shown = ", ".join(ascii(name[:40]) for name in sorted(unknown)[:10])
        log.warning("ignored %d unknown field(s) of a request: %s", len(unknown), shown)


def tokens_to_generate(asked: int | None, prompt_tokens: int, ready: Ready, *, param: str, prompt_param: str) -> int:
    """`asked`, or what is left of the context. Raises `RequestError` where the context is too short for both."""
    room = ready.max_model_len - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens; this model's context has {ready.max_model_len}, "
            "one of which the answer needs",
            param=prompt_param,
            code="context_length_exceeded",
            remedy="shorten the prompt",
        )
    if asked is not None and asked > room:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and {param} asks for {asked}: together more than the "
            f"{ready.max_model_len} tokens of this model's context",
            param=param,
            code="context_length_exceeded",
            remedy=f"ask for at most {room}",
        )
    return room if asked is None else asked


def stop_strings(stop: str | list[str] | None) -> tuple[bytes, ...]:
    """The stop strings as bytes."""
    texts = [stop] if isinstance(stop, str) else stop or []
    return tuple(text.encode("utf-8") for text in texts)


def logit_bias(body: SamplingBody, vocab_size: int) -> dict[int, float]:
    """The bias per token id. Raises `RequestError` for an id outside the vocabulary."""
    bias = {int(key): value for key, value in (body.logit_bias or {}).items()}
    for token_id in bias:
        if token_id >= vocab_size:
            raise RequestError(
                f"logit_bias names token {token_id}; this model's ids end at {vocab_size - 1}",
                param="logit_bias",
                code="invalid_value",
            )
    return bias


def check_stream_options(body: SamplingBody) -> bool:
    """Whether the stream ends with usage. Raises `RequestError` for stream options without a stream."""
    if body.stream_options is None:
        return False
    if not body.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")
    return bool(body.stream_options.include_usage)


def draw_seed(body: SamplingBody) -> int:
    """The request's seed, or one drawn now: a request is reproducible from what is stored of it in either case."""
    return secrets.randbits(63) if body.seed is None else body.seed


def sampling_params(
    body: SamplingBody,
    *,
    seed: int,
    max_tokens: int,
    vocab_size: int,
    logprobs: int | None,
    think: ThinkFormat,
    max_thinking_tokens: int | None = None,
) -> SamplingParams:
    """The engine's parameters for one prompt of `body`."""
    temperature = 1.0 if body.temperature is None else body.temperature
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=logit_bias(body, vocab_size),
        logprobs=logprobs,
        stop=stop_strings(body.stop),
        ignore_eos=bool(body.ignore_eos),
        max_thinking_tokens=max_thinking_tokens,
        think=think,
    )
