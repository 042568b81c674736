"""POST /v1/completions: prompts as text or token ids, continued as they are (reasoning stays in the text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.request import GenerateRequest, ThinkFormat, TokenOutput
from deepseek_r1.serve import responses, sampling
from deepseek_r1.serve.answers import finish_reason, head, respond, usage_of
from deepseek_r1.serve.bridge import Choice, Submission
from deepseek_r1.serve.messages import Ready
from deepseek_r1.serve.output_text import OutputText, OutputToken, TextDelta
from deepseek_r1.serve.schemas import CompletionRequest
from deepseek_r1.serve.service import Service, new_id, service_of
from deepseek_r1.serve.streaming import unless_client_leaves
from deepseek_r1.serve.strict_json import StrictRoute

router = APIRouter(tags=["OpenAI"], route_class=StrictRoute)


def prompts_of(body: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts of a body, each a text or a list of token ids."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def ids_of(prompt: str | list[int], where: str, service: Service, ready: Ready) -> list[int]:
    """The token ids of one prompt. Raises `RequestError` for an empty one and for ids that don't exist."""
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError(f"{where} is empty", param=where, code="invalid_value")
        ids = await service.with_text(len(prompt), service.tokenizer.encode, prompt)
        if not ids:
            raise RequestError(f"{where} has no tokens", param=where, code="invalid_value")
        return ids
    if max(prompt) >= ready.vocab_size:
        raise RequestError(
            f"{where} has the token id {max(prompt)}; this model's ids end at {ready.vocab_size - 1}",
            param=where,
            code="invalid_value",
        )
    return prompt


async def requests_of(
    body: CompletionRequest, service: Service, request_id: str
) -> tuple[list[GenerateRequest], list[str]]:
    """The engine's requests, `n` for each prompt, and the text that each answer repeats (`echo`).

    A choice counts within its prompt, so that a prompt's answer doesn't depend on its neighbours in the list.
    """
    adapter = service.adapter_of(body.model)
    sampling.check_extra_fields(body)
    if body.echo and body.logprobs is not None:
        raise sampling.unsupported("echo", " together with logprobs")
    ready = service.bridge.require_ready()
    prompts = prompts_of(body)
    choices = body.n or 1
    service.bridge.admit(choices * len(prompts))
    seed = sampling.draw_seed(body)
    work: list[GenerateRequest] = []
    echoes: list[str] = []
    for number, prompt in enumerate(prompts):
        where = f"prompt[{number}]" if len(prompts) > 1 else "prompt"
        ids = await ids_of(prompt, where, service, ready)
        max_tokens = sampling.tokens_to_generate(
            body.max_tokens, len(ids), ready, param="max_tokens", prompt_param=where
        )
        params = sampling.sampling_params(
            body,
            seed=seed,
            max_tokens=max_tokens,
            vocab_size=ready.vocab_size,
            logprobs=body.logprobs,
            think=ThinkFormat(close_ids=service.close_ids),
        )
        text = "" if not body.echo else prompt if isinstance(prompt, str) else service.tokenizer.decode(ids)
        for choice in range(choices):
            work.append(GenerateRequest(f"{request_id}-{len(work)}", ids, params, choice, adapter=adapter))
            echoes.append(text)
    return work, echoes


class CompletionAnswer:
    """One request's answer in the making: text per choice, and the words of OpenAI's objects around it."""

    def __init__(
        self, service: Service, request_id: str, submission: Submission, echoes: list[str], *, usage: bool
    ) -> None:
        self._submission = submission
        self._texts = [OutputText(service.vocabulary, c.request.sampling, split=False) for c in submission.choices]
        self._echoes = echoes
        self._usage = usage
        self._head = head(service, request_id, submission) | {"object": "text_completion"}

    def opening(self) -> list[dict[str, Any]]:
        """The prompts, where they are to be repeated."""
        return [self._chunk(index, text) for index, text in enumerate(self._echoes) if text]

    def chunks(self, choice: Choice, outputs: list[TokenOutput]) -> list[dict[str, Any]]:
        """New text of a choice, and its end."""
        text = self._texts[choice.index]
        delta = text.push(outputs)
        found = []
        if delta:
            found.append(self._chunk(choice.index, delta.content, logprobs=self._logprobs(choice, delta)))
        if choice.finish_reason is not None and not choice.pending:
            found.append(self._chunk(choice.index, "", end=finish_reason(choice, text)))
        return found

    def closing(self) -> list[dict[str, Any]]:
        """The usage, when the client asked for it."""
        if not self._usage:
            return []
        return [self._head | {"choices": [], "usage": usage_of(self._submission, self._texts).model_dump()}]

    def whole(self) -> responses.Completion:
        """The answer to a request that doesn't stream."""
        choices = []
        for choice, text, echo in zip(self._submission.choices, self._texts, self._echoes, strict=True):
            delta = text.push(choice.take())
            choices.append(
                responses.CompletionChoice(
                    index=choice.index,
                    text=echo + delta.content,
                    logprobs=self._logprobs(choice, delta),
                    finish_reason=finish_reason(choice, text),
                )
            )
        return responses.Completion(**self._head, choices=choices, usage=usage_of(self._submission, self._texts))

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        end: str | None = None,
        logprobs: responses.CompletionLogprobs | None = None,
    ) -> dict[str, Any]:
        words = None if logprobs is None else logprobs.model_dump()
        chunk = self._head | {"choices": [{"index": index, "text": text, "logprobs": words, "finish_reason": end}]}
        return chunk | {"usage": None} if self._usage else chunk

    @staticmethod
    def _logprobs(choice: Choice, delta: TextDelta) -> responses.CompletionLogprobs | None:
        if choice.request.sampling.logprobs is None:
            return None
        tokens = delta.content_logprobs
        return responses.CompletionLogprobs(
            tokens=[token.chosen.text for token in tokens],
            token_logprobs=[token.chosen.logprob for token in tokens],
            top_logprobs=[_likeliest(token) for token in tokens],
            text_offset=[token.offset for token in tokens],
        )


def _likeliest(token: OutputToken) -> dict[str, float]:
    """The likeliest tokens at a place, and the chosen one, which need not be among them."""
    return {other.text: other.logprob for other in [*token.top, token.chosen]}


@router.post(
    "/v1/completions",
    response_model=responses.Completion,
    responses={200: {"content": {"text/event-stream": {}}}, **responses.ERRORS},
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts; with `stream: true` as server-sent events."""
    service = service_of(request)
    request_id = new_id("cmpl")
    usage = sampling.check_stream_options(body)
    work, echoes = await unless_client_leaves(request.receive, requests_of(body, service, request_id))
    return await respond(
        request,
        service,
        work,
        lambda submission: CompletionAnswer(service, request_id, submission, echoes, usage=usage),
        stream=bool(body.stream),
    )
