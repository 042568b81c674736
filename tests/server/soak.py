"""Many streams against the real server for minutes, with clients that leave; then a flood far beyond its queue.

    python tests/server/soak.py --seconds 300 --streams 64 --memory 1500MiB --out soak.json

Everything that must not happen is a line in the report's `violations`; the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from real_server import start_real
from server_process import Running
from soak_watch import Watch, fit_slope

from deepseek_r1.config.base import parse_size

VOCABULARY = 49152
FIRST_WORD = 1000
"""Token ids from here on are words and pieces of words; special tokens and bytes lie below."""
SILENCE_SECONDS = 180.0
"""A stream that says nothing for this long has failed."""
DRAIN_SECONDS = 240.0
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Plan:
    """What a soak does. Memory in bytes; `slope` is how much of its size the server may grow per minute."""

    seconds: float = 300.0
    streams: int = 64
    memory: int = 1500 << 20
    seed: int = 1
    max_concurrent: int = 16
    max_queue: int = 64
    flood_factor: int = 10
    leaving: float = 0.2
    slope: float = 0.01


@dataclass
class Tally:
    """What happened to the requests."""

    completed: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    logprobs_checked: int = 0
    repeated: int = 0
    differing: int = 0


class Workload:
    """Random requests, and for some of them the answer that an idle server gave before."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stems = [[self.rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(300)] for _ in range(4)]
        self.known: list[tuple[dict[str, Any], str]] = []

    def prompt(self) -> list[int]:
        """5 to 400 tokens; every other one begins like others do, so that blocks are shared."""
        length = self.rng.randint(5, 400)
        stem = self.rng.choice(self.stems)[: self.rng.randint(0, length)] if self.rng.random() < 0.5 else []
        return stem + [self.rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(length - len(stem))]

    def sampling(self) -> dict[str, Any]:
        """Random sampling, with or without an end before max_tokens."""
        rng = self.rng
        words: dict[str, Any] = {
            "max_tokens": rng.randint(5, 120),
            "seed": rng.getrandbits(40),
            "temperature": rng.choice([0.0, 0.6, 1.0, 1.3]),
            "top_p": rng.choice([1.0, 0.95, 0.7]),
            "top_k": rng.choice([0, 0, 40]),
            "ignore_eos": rng.random() < 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if rng.random() < 0.2:
            words |= {"presence_penalty": 0.5, "repetition_penalty": 1.1}
        if rng.random() < 0.2:
            words["stop"] = [rng.choice([".", "\n\n", " the"])]
        return words

    def request(self) -> tuple[str, dict[str, Any]]:
        """A path and a body."""
        words = self.sampling()
        if self.rng.random() < 0.3:
            text = " ".join(self.rng.choice(["tell", "me", "why", "the", "sea", "7", "is", "é"]) for _ in range(40))
            return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **words}
        if self.rng.random() < 0.3:
            words["logprobs"] = 0
        return "/v1/completions", {"prompt": self.prompt(), **words}


class Stream:
    """One streamed request: its events are checked as they come."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = body
        self.text = ""
        self.events = 0
        self.logprobs = 0
        self.end: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False

    async def run(self, client: httpx.AsyncClient, leave_after: int | None) -> None:
        """Read to the end, or leave after so many events. Raises `AssertionError` for whatever is wrong."""
        async with client.stream("POST", self.path, json=self.body) as response:
            if response.status_code != 200:
                raise AssertionError(f"status {response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if line:
                    assert not self.done, "an event after [DONE]"
                    self.take(line)
                if leave_after is not None and self.events >= leave_after:
                    return
        self.check()

    def take(self, line: str) -> None:
        assert line.startswith("data: "), line[:100]
        self.events += 1
        if line == "data: [DONE]":
            self.done = True
            return
        chunk = json.loads(line[6:])
        assert "error" not in chunk, str(chunk)[:300]
        if not chunk["choices"]:
            self.usage = chunk["usage"]
            return
        (choice,) = chunk["choices"]
        assert self.end is None, "a chunk after the end"
        self.text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        if choice.get("logprobs"):
            self.logprobs += len(choice["logprobs"]["tokens"]) if "tokens" in choice["logprobs"] else 0
        self.end = choice["finish_reason"]

    def check(self) -> None:
        """The answer is complete, and as long as was asked for."""
        assert self.done, "the stream ended without [DONE]"
        assert self.usage is not None, "no usage"
        count, asked = self.usage["completion_tokens"], self.body["max_tokens"]
        if self.end == "length":
            assert count == asked, f"{count} tokens instead of {asked}"
        else:
            assert self.end == "stop", f"ended by {self.end!r}"
            assert 1 <= count <= asked, f"{count} tokens, at most {asked} asked for"
            assert "stop" in self.body or not self.body["ignore_eos"], "stopped, with nothing to stop for"
        if "prompt" in self.body:
            assert self.usage["prompt_tokens"] == len(self.body["prompt"])
        if "logprobs" in self.body and "stop" not in self.body:
            # Special tokens have no text and are not shown; there are few of them.
            assert self.logprobs <= count, f"{self.logprobs} log-probabilities for {count} tokens"


async def one_after_the_other(
    client: httpx.AsyncClient, load: Workload, tally: Tally, plan: Plan, deadline: float
) -> None:
    """One client: request after request until the deadline."""
    while time.monotonic() < deadline:
        if load.known and load.rng.random() < 0.06:
            body, want = load.rng.choice(load.known)
            await finish(client, Stream("/v1/completions", body), tally, want)
            continue
        stream = Stream(*load.request())
        if load.rng.random() < plan.leaving:
            await leave(client, stream, load, tally)
        else:
            await finish(client, stream, tally, None)


async def finish(client: httpx.AsyncClient, stream: Stream, tally: Tally, want: str | None) -> None:
    """Run a stream to its end and note how it went."""
    try:
        await stream.run(client, None)
    except (AssertionError, httpx.HTTPError, ValueError) as error:
        tally.errors.append(f"{stream.path}: {type(error).__name__}: {error}"[:400])
        return
    assert stream.usage is not None
    tally.completed[str(stream.end)] += 1
    tally.tokens += stream.usage["completion_tokens"]
    tally.logprobs_checked += stream.logprobs
    if want is not None:
        tally.repeated += 1
        tally.differing += stream.text != want


async def leave(client: httpx.AsyncClient, stream: Stream, load: Workload, tally: Tally) -> None:
    """Disconnect: some while they wait for the first event, others in the middle."""
    events = load.rng.randint(1, 25)
    seconds = load.rng.uniform(0.0, 2.0) if load.rng.random() < 0.3 else None
    try:
        async with asyncio.timeout(seconds):
            await stream.run(client, events)
    except TimeoutError:
        tally.left["waiting" if stream.events == 0 else "streaming"] += 1
    except (AssertionError, httpx.HTTPError, ValueError) as error:
        tally.errors.append(f"{stream.path}, about to leave: {type(error).__name__}: {error}"[:400])
    else:
        tally.left["after its end" if stream.done else "streaming"] += 1


async def flood(client: httpx.AsyncClient, plan: Plan, rng: random.Random) -> dict[str, Any]:
    """All at once `flood_factor` times as many requests as may wait."""
    outcomes: Counter[str] = Counter()
    retry_after: Counter[str] = Counter()
    wrong: list[str] = []

    async def one() -> None:
        prompt = [rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(40)]
        body = {"prompt": prompt, "max_tokens": 16, "ignore_eos": True, "temperature": 0}
        try:
            answer = await client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            outcomes[type(error).__name__] += 1
            return
        outcomes[str(answer.status_code)] += 1
        if answer.status_code == 200:
            if answer.json()["usage"]["completion_tokens"] != 16:
                wrong.append("an answer was cut")
        elif answer.status_code == 429:
            after = answer.headers.get("retry-after", "")
            retry_after[after] += 1
            if not after.isdecimal() or not 1 <= int(after) <= 60:
                wrong.append(f"Retry-After is {after!r}")
            if answer.json()["error"]["code"] != "rate_limit_exceeded":
                wrong.append("a 429 with another code")

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(plan.flood_factor * plan.max_queue)))
    return {
        "requests": plan.flood_factor * plan.max_queue,
        "answers": dict(outcomes),
        "retry_after": dict(retry_after),
        "wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


async def soak(server: Running, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Both phases against a server that is ready; the report."""
    load, tally = Workload(plan.seed), Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=plan.streams)
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=60.0)
    async with httpx.AsyncClient(base_url=server.url, timeout=timeout, limits=limits) as client:
        for _ in range(6):
            body = {"prompt": load.prompt(), **load.sampling(), "max_tokens": 24}
            alone = Stream("/v1/completions", body)
            await alone.run(client, None)
            load.known.append((body, alone.text))
        watch = Watch(server, plan, lambda: tally.tokens)
        watching = asyncio.create_task(watch.run(progress))
        began = time.monotonic()
        try:
            try:
                async with asyncio.timeout(plan.seconds + DRAIN_SECONDS):
                    deadline = began + plan.seconds
                    streams = [one_after_the_other(client, load, tally, plan, deadline) for _ in range(plan.streams)]
                    await asyncio.gather(*streams)
            except TimeoutError:
                tally.errors.append(f"streams were still running {DRAIN_SECONDS:.0f} s after the end")
            drained = time.monotonic() - began
            blocks_left = await watch.until_idle(20.0)
            watch.phase = "flood"
            flooded = await flood(client, plan, load.rng)
            flood_blocks_left = await watch.until_idle(20.0)
            ready_after = (await client.get("/ready")).status_code
            last = Stream("/v1/completions", load.known[0][0])
            await last.run(client, None)
        finally:
            watch.stop()
            await watching
    in_half = [s for s in watch.samples if s.phase == "soak" and s.seconds >= plan.seconds / 2]
    # While the last streams run out there is less work, and less memory: they would hide a slope.
    in_half = [s for s in in_half if s.seconds <= plan.seconds]
    slope = fit_slope([(s.seconds, s.pss) for s in in_half])
    size = sum(s.pss for s in in_half) / max(1, len(in_half))
    report = {
        "plan": asdict(plan),
        "completed": sum(tally.completed.values()),
        "completed_by_end": dict(tally.completed),
        "disconnected": sum(tally.left.values()),
        "disconnected_when": dict(tally.left),
        "errors": tally.errors[:20],
        "error_count": len(tally.errors),
        "tokens": tally.tokens,
        "tokens_per_second": round(tally.tokens / drained, 1),
        "seconds_with_drain": round(drained, 1),
        "logprobs_checked": tally.logprobs_checked,
        "repeated": {"sent": tally.repeated, "differing": tally.differing},
        "same_afterwards": last.text == load.known[0][1],
        "kv_blocks_left": blocks_left,
        "kv_blocks_left_after_flood": flood_blocks_left,
        "ready_after_flood": ready_after,
        "flood": flooded,
        "pss_slope_mib_per_minute": round(slope * 60 / 2**20, 3),
        "pss_slope_share_per_minute": round(slope * 60 / size, 5) if size else 0.0,
        **watch.report(),
    }
    report["violations"] = violations(report, plan, in_half_samples=len(in_half))
    return report


def violations(report: dict[str, Any], plan: Plan, *, in_half_samples: int) -> list[str]:
    """What happened that must not happen."""
    answers = report["flood"]["answers"]
    room = plan.max_concurrent + plan.max_queue
    checks = {
        "a request failed": report["error_count"] == 0,
        "hardly a request was completed": report["completed"] >= plan.streams // 2,
        "nobody left in the middle": report["disconnected_when"].get("streaming", 0) > 0,
        "KV blocks are held by nobody": report["kv_blocks_left"] == 0 == report["kv_blocks_left_after_flood"],
        "the processes took more than --memory": report["pss_peak_mib"] * 2**20 <= plan.memory,
        "too few samples of the memory": in_half_samples >= plan.seconds / 4,
        "the memory grows": report["pss_slope_share_per_minute"] < plan.slope,
        "the engine was restarted": report["engine_restarts"] == 0,
        "more choices ran than --max-concurrent": report["running_peak"] <= plan.max_concurrent,
        "the slots were never full": report["running_peak"] == plan.max_concurrent,
        "nothing ever waited": plan.streams <= plan.max_concurrent or report["waiting_peak"] > 0,
        "the same request gave another text under load": report["repeated"]["differing"]
        <= 0.02 * report["repeated"]["sent"],
        "the server is not ready after the flood": report["ready_after_flood"] == 200,
        "the flood was answered by something other than 200 and 429": set(answers) <= {"200", "429"},
        "the flood met no 429": answers.get("429", 0) > 0,
        "a request of the flood was refused that had room": answers.get("200", 0) >= room,
        "an answer of the flood was wrong": not report["flood"]["wrong"],
        "a 5xx was counted": report["server_errors"] == 0,
    }
    return [problem for problem, fine in checks.items() if not fine]


def run(plan: Plan, progress: Progress = lambda seconds, words: None) -> dict[str, Any]:
    """Start the server, soak it, end it; the report."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        server = start_real(
            Path(folder),
            *("--memory", str(plan.memory), "--max-concurrent", str(plan.max_concurrent)),
            *("--max-queue", str(plan.max_queue)),
        )
        try:
            return asyncio.run(soak(server, plan, progress))
        finally:
            server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--memory", type=parse_size, default=1500 << 20, help="of both processes together, as 1500MiB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the report to this file")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server has to be ended, too
    plan = Plan(seconds=given.seconds, streams=given.streams, memory=given.memory, seed=given.seed)
    report = run(plan, lambda seconds, words: print(f"{seconds:5.0f} s  {words}", file=sys.stderr, flush=True))
    text = json.dumps(report, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
