"""POST /v1/chat/completions: messages through the chat template, the answer split into reasoning and content."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.request import GenerateRequest, ThinkFormat, TokenOutput
from deepseek_r1.models.text.chat_template import opens_thinking
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.serve import responses, sampling
from deepseek_r1.serve.answers import finish_reason, head, respond, shown_token, usage_of
from deepseek_r1.serve.bridge import Choice, Submission
from deepseek_r1.serve.output_text import OutputText, OutputToken, TextDelta
from deepseek_r1.serve.schemas import ChatCompletionRequest, Message
from deepseek_r1.serve.service import Service, new_id, service_of
from deepseek_r1.serve.streaming import unless_client_leaves
from deepseek_r1.serve.strict_json import StrictRoute

router = APIRouter(tags=["OpenAI"], route_class=StrictRoute)

_SUPPORTED_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as the chat template takes them: parts joined, `developer` as `system`.

    Raises `RequestError` that names the message, and the part, which can't be served.
    """
    rendered = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role not in _SUPPORTED_ROLES:
            raise sampling.unsupported(f"{where}.role", f": {message.role} messages need tools")
        extra = message.model_extra or {}
        for name in ("tool_calls", "function_call", "audio"):
            if extra.get(name):
                raise sampling.unsupported(f"{where}.{name}")
        item = {"role": _SUPPORTED_ROLES[message.role], "content": _text_of(message, where)}
        if message.role == "assistant" and message.reasoning_content is not None:
            item["reasoning_content"] = message.reasoning_content
        rendered.append(item)
    return rendered


def _text_of(message: Message, where: str) -> str:
    if message.content is None:
        if message.role == "assistant" and message.reasoning_content is not None:
            return ""
        raise RequestError(f"{where}.content is missing", param=f"{where}.content", code="missing_required_parameter")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content):
        if part.type != "text":
            raise sampling.unsupported(f"{where}.content[{index}].type", ": parts other than text can't be read")
        if part.text is None:
            param = f"{where}.content[{index}].text"
            raise RequestError(f"{param} is missing", param=param, code="missing_required_parameter")
        texts.append(part.text)
    return "".join(texts)


def encode_chat(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], *, add_generation_prompt: bool
) -> tuple[str, list[int]]:
    """The rendered conversation and its ids (the template writes special tokens itself)."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
    return text, tokenizer.encode(text, add_special_tokens=False)


async def requests_of(body: ChatCompletionRequest, service: Service, request_id: str) -> list[GenerateRequest]:
    """The engine's requests for one body, one per choice. Raises what makes it impossible, field by field."""
    adapter = service.adapter_of(body.model)
    sampling.check_extra_fields(body)
    ready = service.bridge.require_ready()
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    choices = body.n or 1
    service.bridge.admit(choices)
    messages = template_messages(body.messages)
    size = sum(len(message["content"]) for message in messages)
    text, ids = await service.with_text(size, encode_chat, service.tokenizer, messages, add_generation_prompt=True)
    if not ids:
        raise RequestError("the messages make an empty prompt", param="messages", code="invalid_value")
    asked, param = body.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, param = body.max_tokens, "max_tokens"
    max_tokens = sampling.tokens_to_generate(asked, len(ids), ready, param=param, prompt_param="messages")
    think = ThinkFormat(close_ids=service.close_ids, starts_open=opens_thinking(text))
    params = sampling.sampling_params(
        body,
        seed=sampling.draw_seed(body),
        max_tokens=max_tokens,
        vocab_size=ready.vocab_size,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        think=think,
        max_thinking_tokens=body.max_thinking_tokens,
    )
    return [GenerateRequest(f"{request_id}-{index}", ids, params, index, adapter=adapter) for index in range(choices)]


class ChatAnswer:
    """One request's answer in the making: text per choice, and the words of OpenAI's objects around it."""

    def __init__(self, service: Service, request_id: str, submission: Submission, *, usage: bool) -> None:
        self._submission = submission
        self._texts = [OutputText(service.vocabulary, c.request.sampling, split=True) for c in submission.choices]
        self._usage = usage
        self._head = head(service, request_id, submission)

    def opening(self) -> list[dict[str, Any]]:
        """The role of each choice."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._texts))]

    def chunks(self, choice: Choice, outputs: list[TokenOutput]) -> list[dict[str, Any]]:
        """New text of a choice, and its end."""
        text = self._texts[choice.index]
        delta = text.push(outputs)
        found = []
        if delta:
            fields = {"reasoning_content": delta.reasoning, "content": delta.content}
            words = {name: value for name, value in fields.items() if value}
            found.append(self._chunk(choice.index, words or {"content": ""}, logprobs=self._logprobs(choice, delta)))
        if choice.finish_reason is not None and not choice.pending:
            found.append(self._chunk(choice.index, {}, end=finish_reason(choice, text)))
        return found

    def closing(self) -> list[dict[str, Any]]:
        """The usage, when the client asked for it."""
        if not self._usage:
            return []
        chunk = self._head | {"object": "chat.completion.chunk", "choices": []}
        return [chunk | {"usage": self._usage_of().model_dump()}]

    def whole(self) -> responses.ChatCompletion:
        """The answer to a request that doesn't stream."""
        choices = []
        for choice, text in zip(self._submission.choices, self._texts, strict=True):
            delta = text.push(choice.take())
            message = responses.ChatMessage(content=delta.content, reasoning_content=delta.reasoning or None)
            logprobs = self._logprobs(choice, delta)
            choices.append(
                responses.ChatChoice(
                    index=choice.index,
                    message=message,
                    logprobs=logprobs,
                    finish_reason=finish_reason(choice, text),
                )
            )
        return responses.ChatCompletion(**self._head, choices=choices, usage=self._usage_of())

    def _usage_of(self) -> responses.Usage:
        return usage_of(self._submission, self._texts)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        end: str | None = None,
        logprobs: responses.ChatLogprobs | None = None,
    ) -> dict[str, Any]:
        words = None if logprobs is None else logprobs.model_dump()
        choice = {"index": index, "delta": delta, "logprobs": words, "finish_reason": end}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": None} if self._usage else chunk

    @staticmethod
    def _logprobs(choice: Choice, delta: TextDelta) -> responses.ChatLogprobs | None:
        if choice.request.sampling.logprobs is None:
            return None
        return responses.ChatLogprobs(
            content=[chat_token(token) for token in delta.content_logprobs],
            reasoning_content=[chat_token(token) for token in delta.reasoning_logprobs],
        )


def chat_token(token: OutputToken) -> responses.ChatTokenLogprob:
    """A token of the output in the words of the chat API."""
    top = [responses.TopLogprob.model_validate(shown_token(other)) for other in token.top]
    return responses.ChatTokenLogprob(**shown_token(token.chosen), top_logprobs=top)


@router.post(
    "/v1/chat/completions",
    response_model=responses.ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}, **responses.ERRORS},
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation; with `stream: true` as server-sent events."""
    service = service_of(request)
    request_id = new_id("chatcmpl")
    usage = sampling.check_stream_options(body)
    work = await unless_client_leaves(request.receive, requests_of(body, service, request_id))
    return await respond(
        request,
        service,
        work,
        lambda submission: ChatAnswer(service, request_id, submission, usage=usage),
        stream=bool(body.stream),
    )
