"""What clients may send: the request bodies of the HTTP API, with their ranges (OpenAPI is generated from them).

Values are not coerced ("5" is no integer); fields that are not named here are allowed and ignored with a log line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

INT32_MAX = 2**31 - 1
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1)]
TokenIdLists = Annotated[list[TokenIds], Field(fail_fast=True, min_length=1)]


def _kind_of_stop(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _kind_of_prompt(value: Any) -> str | None:
    """Which of the four forms a prompt has, by its first entry: one form is checked, not four."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        first = value[0] if value else ""
        return "<texts>" if isinstance(first, str) else "<id lists>" if isinstance(first, list) else "<ids>"
    return None


def _kind_of_content(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Stop = Annotated[
    Annotated[StopString, Tag("<text>")]
    | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(
        _kind_of_stop, custom_error_type="stop_type", custom_error_message="Must be a string or a list of strings"
    ),
]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[TokenIdLists, Tag("<id lists>")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message="Must be a string, a list of strings, a list of token ids, or a list of such lists",
    ),
]


class RequestBody(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(RequestBody):
    """What a stream carries beside text."""

    include_usage: bool | None = Field(None, description="send a last chunk with the usage of the request")


class SamplingBody(RequestBody):
    """How tokens are chosen and when to stop, the same for chat and completions."""

    model: str | None = Field(
        None, description="the id of the served model or of an adapter, or 'default'; absent means the same"
    )
    max_tokens: int | None = Field(
        None, ge=1, le=INT32_MAX, description="tokens to generate at most; default: what is left of the context"
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="choices per prompt")
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="makes sampling reproducible; drawn at random when absent"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; default 1")
    top_p: float | None = Field(None, gt=0, le=1, description="sample from the likeliest tokens of this total mass")
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX, description="sample from this many tokens; 0 and -1: all")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest one")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="1 is off; covers the prompt too")
    logit_bias: (
        dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
        | None
    ) = Field(None, max_length=1024, description="token id -> amount added to its logit")
    stop: Stop | None = Field(None, description="the output ends before the first of these strings")
    ignore_eos: bool | None = Field(None, description="go on after the end-of-sequence token")
    stream: bool | None = Field(None, description="answer with server-sent events")
    stream_options: StreamOptions | None = None


class ContentPart(RequestBody):
    """One part of a message. Parts of type `text` are joined; other types are answered with 400."""

    type: str = Field(json_schema_extra={"example": "text"})
    text: str | None = None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(
        _kind_of_content,
        custom_error_type="content_type",
        custom_error_message="Must be a string or a list of content parts",
    ),
]


class Message(RequestBody):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="developer means system; tool and function are not supported"
    )
    content: Content | None = None
    reasoning_content: str | None = Field(None, description="the assistant's earlier reasoning")
    name: str | None = None


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1)]


class ChatCompletionRequest(SamplingBody):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(
        None, ge=1, le=INT32_MAX, description="the newer name of max_tokens; goes before it"
    )
    logprobs: bool | None = Field(None, description="report log-probabilities of the raw distribution")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="alternatives per token")
    max_thinking_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description="the reasoning is closed at this many tokens, and the answer follows"
    )


class CompletionRequest(SamplingBody):
    """Body of POST /v1/completions."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="alternatives per token")
    echo: bool | None = Field(None, description="put the prompt before the output")


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize: either a text, or messages that go through the chat template."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = Field(None, description="of `prompt`; default true")
    messages: Messages | None = None
    add_generation_prompt: bool | None = Field(None, description="of `messages`; default true")


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
