"""POST /tokenize and /detokenize: the served model's tokenizer, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deepseek_r1.core.errors import RequestError
from deepseek_r1.serve import responses, sampling
from deepseek_r1.serve.chat import encode_chat, template_messages
from deepseek_r1.serve.schemas import DetokenizeRequest, TokenizeRequest
from deepseek_r1.serve.service import service_of
from deepseek_r1.serve.strict_json import StrictRoute

router = APIRouter(tags=["text"], responses=responses.ERRORS, route_class=StrictRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> responses.TokenizeResponse:
    """The token ids of a text, or of messages rendered by the chat template."""
    service = service_of(request)
    service.adapter_of(body.model)  # any of them: they share the tokenizer
    sampling.check_extra_fields(body)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt", code="invalid_value")
    tokenizer = service.tokenizer
    if body.messages is not None:
        messages = template_messages(body.messages)
        size = sum(len(message["content"]) for message in messages)
        _, ids = await service.with_text(
            size, encode_chat, tokenizer, messages, add_generation_prompt=body.add_generation_prompt is not False
        )
    else:
        prompt = body.prompt or ""
        ids = await service.with_text(
            len(prompt), tokenizer.encode, prompt, add_special_tokens=body.add_special_tokens is not False
        )
    ready = service.bridge.ready
    return responses.TokenizeResponse(
        tokens=ids, count=len(ids), max_model_len=None if ready is None else ready.max_model_len
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> responses.DetokenizeResponse:
    """The text of token ids, special tokens included."""
    service = service_of(request)
    service.adapter_of(body.model)  # any of them: they share the tokenizer
    sampling.check_extra_fields(body)
    tokenizer = service.tokenizer
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        raise RequestError(
            f"tokens has the id {max(body.tokens)}; this model's ids end at {tokenizer.vocab_size - 1}",
            param="tokens",
            code="invalid_value",
        )
    text = await service.with_text(len(body.tokens), tokenizer.decode, body.tokens, skip_special_tokens=False)
    return responses.DetokenizeResponse(prompt=text)
