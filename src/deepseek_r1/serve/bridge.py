"""The API side of the process border: hands choices to the engine and its tokens to whoever waits for them.

Everything a request needs to be resumed elsewhere (prompt, emitted tokens, seed, sampling) is kept here per choice.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from deepseek_r1.core.errors import CapacityError, DeepSeekError, EngineDiedError, RequestError
from deepseek_r1.engine.request import FinishReason, GenerateRequest, TokenOutput
from deepseek_r1.operate.metrics import ServerMetrics
from deepseek_r1.serve.errors import ApiError
from deepseek_r1.serve.messages import Cancel, FromEngine, Outputs, Ping, Pong, Ready, Refused, ToEngine

PING_SECONDS = 1.0
RATE_SECONDS = 30.0
"""Window over which the pace of finished choices is measured, for Retry-After."""


class Sender(Protocol):
    """The supervisor, as the bridge sees it."""

    def send(self, message: ToEngine) -> None:
        """Raises `EngineDiedError` while there is no engine."""


class Choice:
    """One choice in flight: its request (prompt, seed, sampling), the tokens emitted so far, what is not read yet."""

    __slots__ = (
        "arrived_at",
        "cached_tokens",
        "emitted",
        "finish_reason",
        "index",
        "last_at",
        "pending",
        "request",
        "submission",
    )

    def __init__(self, submission: Submission, index: int, request: GenerateRequest, now: float) -> None:
        self.submission = submission
        self.index = index
        self.request = request
        self.emitted: list[int] = []
        self.pending: list[TokenOutput] = []
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = 0
        self.arrived_at = now
        self.last_at = 0.0

    def take(self) -> list[TokenOutput]:
        """What has arrived since the last call."""
        taken, self.pending = self.pending, []
        return taken


class Submission:
    """All choices of one HTTP request, and the one place where their reader waits."""

    def __init__(self, requests: Sequence[GenerateRequest], now: float) -> None:
        self.choices = [Choice(self, index, request, now) for index, request in enumerate(requests)]
        self.unfinished = len(self.choices)
        self.error: DeepSeekError | None = None
        self._news = asyncio.Event()
        self._ended = asyncio.Event()

    async def news(self) -> list[tuple[Choice, list[TokenOutput]]]:
        """Wait for outputs; the choices that have some, with them. Raises what ended the request, after the last."""
        while True:
            taken = [(choice, choice.take()) for choice in self.choices if choice.pending]
            if taken:
                return taken
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()

    async def pause(self, seconds: float) -> None:
        """Let outputs gather for `seconds`, or until all choices have ended."""
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
            except TimeoutError:
                return

    async def finish(self) -> None:
        """Wait until all choices have ended. Raises what ended the request before its time."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error

    def add(self, choice: Choice, output: TokenOutput) -> None:
        """Note an output of one of our choices."""
        choice.pending.append(output)
        choice.emitted.extend(output.token_ids)
        if output.finish_reason is not None:
            choice.finish_reason = output.finish_reason
            self.unfinished -= 1
            if self.unfinished == 0:
                self._ended.set()
        self._news.set()

    def fail(self, error: DeepSeekError) -> None:
        """End the request with an error, unless it ended already."""
        if self.error is None and self.unfinished:
            self.error = error
            self._news.set()
            self._ended.set()

    @property
    def over(self) -> bool:
        """Whether all choices ended, or the request failed."""
        return self._ended.is_set()


class Bridge:
    """Choices in flight, their limits, and the engine's state. Listens to the supervisor."""

    def __init__(self, metrics: ServerMetrics, *, max_concurrent: int, max_queue: int) -> None:
        self.metrics = metrics
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.ready: Ready | None = None
        self.down_reason = "the engine is loading the model"
        self._sender: Sender | None = None
        self._started_before = False
        self._choices: dict[str, Choice] = {}
        self._finished_at: deque[float] = deque(maxlen=1024)

    def attach(self, sender: Sender) -> None:
        """Set where messages go."""
        self._sender = sender

    @property
    def in_flight(self) -> int:
        """Choices that the engine computes or that wait in it."""
        return len(self._choices)

    def require_ready(self) -> Ready:
        """The engine's facts. Raises `EngineDiedError` while there is no engine that is ready."""
        if self.ready is None:
            raise EngineDiedError(self.down_reason, remedy="try again shortly")
        return self.ready

    def admit(self, count: int) -> None:
        """Raise the error that a request of `count` choices meets now: 400 if it never fits, 429 if not now."""
        limit = self.max_concurrent + self.max_queue
        if count > limit:
            raise RequestError(
                f"the request asks for {count} choices (prompts x n); this server takes {limit} at once",
                param="n",
                code="invalid_value",
            )
        excess = self.in_flight + count - limit
        if excess > 0:
            seconds = self.seconds_until_free(excess)
            raise ApiError(
                429,
                f"the server is at its limit of {self.max_concurrent} running and {self.max_queue} waiting choices; "
                f"try again in {seconds} s",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
                headers={"Retry-After": str(seconds)},
            )

    def seconds_until_free(self, count: int) -> int:
        """Seconds until `count` choices will have finished, at the pace of the last `RATE_SECONDS`: 1 to 60.

        With none finished yet, the age of the oldest choice in flight: what has taken that long takes as long again.
        """
        now = time.monotonic()
        while self._finished_at and self._finished_at[0] < now - RATE_SECONDS:
            self._finished_at.popleft()
        oldest = min((choice.arrived_at for choice in self._choices.values()), default=now)
        if self._finished_at:
            seconds = count * (now - self._finished_at[0] + 1e-3) / len(self._finished_at)
        else:
            seconds = now - oldest
        return max(1, min(60, math.ceil(seconds)))

    def submit(self, requests: Sequence[GenerateRequest]) -> Submission:
        """Send the choices of one HTTP request to the engine. `release` must follow, whatever happens.

        Raises `RequestError` and `ApiError` (429) as `admit` does, `EngineDiedError` without an engine.
        """
        self.require_ready()
        self.admit(len(requests))
        assert self._sender is not None
        submission = Submission(requests, time.monotonic())
        try:
            for choice in submission.choices:
                self._sender.send(choice.request)
                self._choices[choice.request.request_id] = choice
        except EngineDiedError:
            self.release(submission)
            raise
        return submission

    def release(self, submission: Submission) -> None:
        """Forget a request; what still runs of it is cancelled in the engine."""
        running = [
            choice.request.request_id
            for choice in submission.choices
            if self._choices.pop(choice.request.request_id, None) is not None
        ]
        if running and self.ready is not None and self._sender is not None:
            self._sender.send(Cancel(running))

    def on_ready(self, ready: Ready) -> None:
        """The engine can take requests."""
        self.ready = ready
        self.metrics.engine_up(ready.load_seconds, ready.kv_blocks, restart=self._started_before)
        self._started_before = True

    def on_down(self, reason: str) -> None:
        """The engine is gone: every request in flight ends with an error."""
        self.ready = None
        self.down_reason = "the engine process ended and is being started again"
        self.metrics.engine_down()
        self.fail_all(EngineDiedError(reason, remedy="the engine is being started again: send the request again"))

    def fail_all(self, error: DeepSeekError) -> None:
        """End every request in flight with an error."""
        for choice in list(self._choices.values()):
            choice.submission.fail(error)
        self._choices.clear()

    def on_message(self, message: FromEngine) -> None:
        """Take a message of the engine."""
        match message:
            case Outputs():
                now = time.monotonic()
                for output in message.outputs:
                    self._take(output, now)
                self.metrics.step(message.stats)
            case Refused():
                choice = self._choices.pop(message.request_id, None)
                if choice is not None:
                    choice.submission.fail(refusal(message))
            case Pong():
                self.metrics.round_trip(time.monotonic() - message.sent_at)
                self.metrics.experts(message.expert_load)

    def _take(self, output: TokenOutput, now: float) -> None:
        choice = self._choices.get(output.request_id)
        if choice is None:
            return  # cancelled: the step was on its way
        choice.cached_tokens = max(choice.cached_tokens, output.cached_tokens)
        if output.token_ids:
            if not choice.emitted:
                self.metrics.first_token(now - choice.arrived_at, output.queue_seconds)
            else:
                self.metrics.next_tokens(now - choice.last_at, len(output.token_ids))
            choice.last_at = now
        if output.finish_reason is not None:
            del self._choices[output.request_id]
            self._finished_at.append(now)
            self.metrics.finished(now - choice.arrived_at)
        choice.submission.add(choice, output)

    async def ping_forever(self) -> None:
        """Measure the border's round trip once per `PING_SECONDS`, while there is an engine."""
        while True:
            if self.ready is not None and self._sender is not None:
                self._sender.send(Ping(time.monotonic()))
            await asyncio.sleep(PING_SECONDS)


def refusal(message: Refused) -> DeepSeekError:
    """The error that a refused request is answered with."""
    if message.code == "no_capacity":
        return CapacityError(message.message)
    return RequestError(message.message, param=message.param, code=message.code)
