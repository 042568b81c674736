"""What the server answers: the response bodies of the HTTP API, as OpenAI defines them, with our few additions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What was wrong, where, and OpenAI's names for it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Where prompt tokens came from."""

    cached_tokens: int = Field(description="taken from the prefix cache")


class CompletionDetails(BaseModel):
    """What output tokens were."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of all choices of a request. A prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(BaseModel):
    """One token that might have been chosen. `bytes` is null for special tokens, which have no text."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """One token that was chosen, with the most likely ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message's tokens; those of the reasoning (tags included) stand apart."""

    content: list[ChatTokenLogprob]
    reasoning_content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    """The assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens, in four parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of `n` continuations of one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class TokenizeResponse(BaseModel):
    """Answer of POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int | None = Field(description="tokens of context; null while the engine is not ready")


class DetokenizeResponse(BaseModel):
    """Answer of POST /detokenize."""

    prompt: str


class Model(BaseModel):
    """The served model, or an adapter of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str = Field(description="what it was loaded from: of an adapter, the folder's name")
    parent: str | None = Field(description="the model that an adapter changes; null for the model itself")
    max_model_len: int | None = Field(description="tokens of context; null while the engine is not ready")


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Answer of GET /health and GET /ready."""

    status: Literal["alive", "ready"]
    model: str


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request can't be served as it is: the error says why."},
    "5XX": {"model": ErrorBody, "description": "The engine is not ready, or the server has a defect."},
}
"""For the `responses` of every route."""
