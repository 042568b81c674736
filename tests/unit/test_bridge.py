"""The bridge without processes: admission, Retry-After, engine death, late outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from deepseek_r1.core.errors import EngineDiedError, RequestError
from deepseek_r1.engine.request import EngineStats, GenerateRequest, SamplingParams, TokenOutput
from deepseek_r1.operate.metrics import ServerMetrics
from deepseek_r1.serve.bridge import Bridge, Choice
from deepseek_r1.serve.errors import ApiError
from deepseek_r1.serve.messages import Cancel, Outputs, Ready, Refused, ToEngine

READY = Ready(1, 512, 64, 16, 0, 0, 0.1, 262, "fp32", "test")


class Sent:
    def __init__(self) -> None:
        self.messages: list[ToEngine] = []

    def send(self, message: ToEngine) -> None:
        self.messages.append(message)


def made(**limits: int) -> tuple[Bridge, Sent]:
    bridge = Bridge(ServerMetrics("m"), **({"max_concurrent": 2, "max_queue": 2} | limits))
    sent = Sent()
    bridge.attach(sent)
    bridge.on_ready(READY)
    return bridge, sent


def work(*names: str) -> list[GenerateRequest]:
    return [GenerateRequest(name, [1, 2], SamplingParams(8, seed=5), index) for index, name in enumerate(names)]


def outputs(*found: TokenOutput) -> Outputs:
    return Outputs(list(found), EngineStats())


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_outputs_reach_their_choice_and_are_kept() -> None:
    async def test() -> None:
        bridge, _ = made()
        submission = bridge.submit(work("a", "b"))
        bridge.on_message(outputs(TokenOutput("a", [7], cached_tokens=16), TokenOutput("gone", [1])))
        news = await submission.news()
        assert [(choice.index, [o.token_ids for o in taken]) for choice, taken in news] == [(0, [[7]])]
        bridge.on_message(outputs(TokenOutput("a", [8], finish_reason="stop"), TokenOutput("b", [9])))
        await submission.news()
        first, second = submission.choices
        # What a later resume needs: prompt, seed and sampling, and all tokens so far.
        assert (first.request.prompt_ids, first.request.sampling.seed, first.emitted) == ([1, 2], 5, [7, 8])
        assert (first.finish_reason, second.finish_reason, first.cached_tokens) == ("stop", None, 16)
        assert bridge.in_flight == 1
        assert not submission.over

    run(test())


def test_release_cancels_what_runs() -> None:
    async def test() -> None:
        bridge, sent = made()
        submission = bridge.submit(work("a", "b"))
        bridge.on_message(outputs(TokenOutput("a", [7], finish_reason="length")))
        bridge.release(submission)
        bridge.release(submission)
        assert sent.messages[2:] == [Cancel(["b"])]
        assert bridge.in_flight == 0

    run(test())


def test_death_ends_requests_after_their_last_tokens() -> None:
    async def test() -> None:
        bridge, _ = made()
        submission = bridge.submit(work("a"))
        bridge.on_message(outputs(TokenOutput("a", [7])))
        bridge.on_down("the engine process ended")
        assert len(await submission.news()) == 1
        with pytest.raises(EngineDiedError):
            await submission.news()
        with pytest.raises(EngineDiedError):
            await submission.finish()
        with pytest.raises(EngineDiedError):
            bridge.submit(work("b"))
        bridge.on_ready(READY)
        bridge.submit(work("b"))

    run(test())


def test_refusals() -> None:
    async def test() -> None:
        bridge, sent = made()
        submission = bridge.submit(work("a", "b"))
        bridge.on_message(Refused("b", "too long", "context_length_exceeded", "prompt"))
        with pytest.raises(RequestError, match="too long") as caught:
            await submission.finish()
        assert caught.value.param == "prompt"
        bridge.release(submission)
        assert sent.messages[-1] == Cancel(["a"])

    run(test())


def test_limits_and_retry_after() -> None:
    async def test() -> None:
        bridge, _ = made()
        with pytest.raises(RequestError):
            bridge.admit(5)
        first = bridge.submit(work("a", "b", "c"))
        bridge.admit(1)
        with pytest.raises(ApiError) as caught:
            bridge.admit(2)
        assert caught.value.status == 429
        assert caught.value.headers["Retry-After"] == "1"
        # Nothing has finished yet and the oldest is 20 s old: as long again.
        for choice in first.choices:
            choice.arrived_at -= 20
        assert bridge.seconds_until_free(1) in (20, 21)
        for choice in first.choices:
            choice.arrived_at -= 1000
        assert bridge.seconds_until_free(1) == 60
        # Two finished, the first of them 10 s ago: one per 5 s.
        bridge._finished_at.extend([time.monotonic() - 10, time.monotonic()])
        assert bridge.seconds_until_free(1) in (5, 6)
        assert bridge.seconds_until_free(3) in (15, 16)

    run(test())


def test_pause_ends_with_the_request() -> None:
    async def test() -> None:
        bridge, _ = made()
        submission = bridge.submit(work("a"))
        began = time.monotonic()
        await submission.pause(0.05)
        assert 0.04 < time.monotonic() - began < 1
        asyncio.get_running_loop().call_later(
            0.05, bridge.on_message, outputs(TokenOutput("a", [1], finish_reason="stop"))
        )
        await submission.pause(5)
        assert time.monotonic() - began < 2
        assert isinstance(submission.choices[0], Choice)

    run(test())
