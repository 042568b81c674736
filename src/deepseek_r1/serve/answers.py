"""What answers of chat and completions have in common: identity, usage, end, and the way to the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from deepseek_r1.engine.request import GenerateRequest
from deepseek_r1.serve.bridge import Choice, Submission
from deepseek_r1.serve.errors import encode_json
from deepseek_r1.serve.output_text import OutputText, ShownToken
from deepseek_r1.serve.responses import CompletionDetails, PromptDetails, Usage
from deepseek_r1.serve.service import Service
from deepseek_r1.serve.streaming import EventStream, StreamFormat, events, unless_client_leaves


class Answer(StreamFormat, Protocol):
    """An answer that can be told in chunks or as a whole."""

    def whole(self) -> BaseModel:
        """The answer, once all choices have ended."""


def head(service: Service, request_id: str, submission: Submission) -> dict[str, Any]:
    """How every object of an answer begins. The fingerprint says what the numbers depend on beside the request."""
    ready = service.bridge.require_ready()
    return {
        "id": request_id,
        "created": int(time.time()),
        "model": submission.choices[0].request.adapter or service.model_id,
        "system_fingerprint": f"{ready.precision}/{ready.path}",
    }


def usage_of(submission: Submission, texts: Sequence[OutputText]) -> Usage:
    """The usage of all choices so far. A prompt counts once: with the choice 0 that continues it."""
    firsts = [choice for choice in submission.choices if choice.request.choice_index == 0]
    prompt = sum(len(choice.request.prompt_ids) for choice in firsts)
    output = sum(len(choice.emitted) for choice in submission.choices)
    reasoning = sum(text.reasoning_tokens for text in texts)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(choice.cached_tokens for choice in firsts)),
        completion_tokens_details=CompletionDetails(reasoning_tokens=reasoning),
    )


def finish_reason(choice: Choice, text: OutputText) -> Literal["stop", "length"]:
    """Why a choice ended, in OpenAI's words."""
    return "stop" if text.stopped or choice.finish_reason != "length" else "length"


def shown_token(token: ShownToken) -> dict[str, Any]:
    """A token's text, bytes and log-probability."""
    data = None if token.data is None else list(token.data)
    return {"token": token.text, "logprob": token.logprob, "bytes": data}


async def respond(
    request: Request,
    service: Service,
    work: Sequence[GenerateRequest],
    make_answer: Callable[[Submission], Answer],
    *,
    stream: bool,
) -> Response:
    """Have the engine do `work` and answer with it. A client that leaves frees its slots at once."""
    bridge = service.bridge
    submission = bridge.submit(work)
    streaming = False
    try:
        answer = make_answer(submission)
        if stream:
            # The first news decide the status: a refusal or a dead engine is still an error response.
            first = await unless_client_leaves(request.receive, submission.news())
            source = events(submission, first, answer, service.stream_interval)
            streaming = True
            return EventStream(source, lambda: bridge.release(submission))
        await unless_client_leaves(request.receive, submission.finish())
        return Response(encode_json(answer.whole().model_dump()), media_type="application/json")
    finally:
        if not streaming:
            bridge.release(submission)
