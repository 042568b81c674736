"""Server-sent events, and noticing at once that a client has left, while streaming and while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.engine.request import TokenOutput
from deepseek_r1.serve.bridge import Choice, Submission
from deepseek_r1.serve.errors import as_api_error, encode_json

T = TypeVar("T")
News = list[tuple[Choice, list[TokenOutput]]]

DONE = b"data: [DONE]\n\n"


class ClientLeftError(Exception):
    """The client closed its connection before the answer was complete."""


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client leaves first, `work` is cancelled and `ClientLeftError` raised.

    The request's body must have been read.
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeftError
    finally:
        for other in (task, leaving):
            other.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def install(app: FastAPI) -> None:
    """Count requests whose client left as 499; nobody reads that answer."""

    async def on_client_left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ClientLeftError, on_client_left)


class StreamFormat(Protocol):
    """How one endpoint words its chunks; each is a JSON object."""

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before any text."""

    def chunks(self, choice: Choice, outputs: list[TokenOutput]) -> list[dict[str, Any]]:
        """What these outputs add to a choice; may be nothing yet."""

    def closing(self) -> list[dict[str, Any]]:
        """Chunks after all choices have ended."""


def event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(chunk) + b"\n\n"


async def events(submission: Submission, first: News, form: StreamFormat, interval: float) -> AsyncIterator[bytes]:
    """The events of a stream: the first token at once, later ones gathered for `interval` seconds.

    An error after the start becomes an error event, and the stream ends without `[DONE]`.
    """
    yield b"".join(map(event, form.opening()))
    news = first
    try:
        while True:
            chunks = [chunk for choice, outputs in news for chunk in form.chunks(choice, outputs)]
            if chunks:
                yield b"".join(map(event, chunks))
            if submission.unfinished == 0 and not any(choice.pending for choice in submission.choices):
                break
            await submission.pause(interval)
            news = await submission.news()
    except DeepSeekError as error:
        yield event(as_api_error(error).body())
        return
    yield b"".join(map(event, form.closing())) + DONE


class EventStream(Response):
    """Sends events; calls `release` when the stream has ended or its client has left."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncIterator[bytes], release: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source = source
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the stream as an ASGI application."""
        try:
            await unless_client_leaves(receive, self._send_all(send))
        except ClientLeftError:
            return
        finally:
            self._release()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._source:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
