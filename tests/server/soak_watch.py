"""What the soak sees of the server from outside, once per second: memory of both processes, /metrics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np
import psutil
from server_process import Running

from deepseek_r1.core.environment import process_pss

SERIES = ("kv_blocks_used", "kv_blocks_cached", "requests_running", "requests_waiting")
TOTALS = ("preemptions_total", "engine_restarts_total", "generated_tokens_total", "prefix_hit_tokens_total")


class Limits(Protocol):
    """What the watch needs of the soak's plan."""

    @property
    def memory(self) -> int: ...


@dataclass(frozen=True)
class Sample:
    """The server at one moment. `pss` is the sum of both processes in bytes."""

    seconds: float
    phase: str
    pss: int
    pss_engine: int
    values: dict[str, float]


def fit_slope(points: list[tuple[float, float]]) -> float:
    """Slope of the straight line through (seconds, bytes), in bytes per second; 0 for fewer than three points."""
    if len(points) < 3:
        return 0.0
    x, y = np.array(points, dtype=np.float64).T
    return float(np.polyfit(x - x.mean(), y, 1)[0])


class Watch:
    """Samples until `stop`. `phase` is noted with each sample."""

    def __init__(self, server: Running, plan: Limits, tokens: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self.phase = "soak"
        self._server = server
        self._plan = plan
        self._tokens = tokens
        self._began = time.monotonic()
        self._stopped = asyncio.Event()
        self._text = ""

    async def run(self, progress: Callable[[float, str], None]) -> None:
        """Sample once per second."""
        async with httpx.AsyncClient(base_url=self._server.url, timeout=60) as client:
            while not self._stopped.is_set():
                sample = await self._sample(client)
                self.samples.append(sample)
                values = sample.values
                progress(
                    sample.seconds,
                    f"{self.phase}: {sample.pss >> 20} of {self._plan.memory >> 20} MiB, "
                    f"{values['requests_running']:.0f} running, {values['requests_waiting']:.0f} waiting, "
                    f"{values['kv_blocks_used']:.0f} blocks, {self._tokens()} tokens",
                )
                try:
                    async with asyncio.timeout(1.0):
                        await self._stopped.wait()
                except TimeoutError:
                    continue

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    async def _sample(self, client: httpx.AsyncClient) -> Sample:
        self._text = (await client.get("/metrics")).text
        values = {name: self._value(f"deepseek_r1_{name}") for name in SERIES}
        engine = psutil.Process(self._server.process.pid).children()
        own, theirs = await asyncio.to_thread(
            lambda: (process_pss(self._server.process.pid), sum(process_pss(child.pid) for child in engine))
        )
        return Sample(time.monotonic() - self._began, self.phase, own + theirs, theirs, values)

    def _value(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self._text, re.MULTILINE)
        assert found is not None, f"{name} is not in /metrics"
        return float(found[1])

    async def until_idle(self, seconds: float) -> int:
        """Wait until no KV block is in use; how many still are after `seconds`."""
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self._server.url, timeout=60) as client:
            while True:
                self._text = (await client.get("/metrics")).text
                used = int(self._value("deepseek_r1_kv_blocks_used"))
                waiting = self._value("deepseek_r1_requests_running") + self._value("deepseek_r1_requests_waiting")
                if (used == 0 and waiting == 0) or time.monotonic() > deadline:
                    return used
                await asyncio.sleep(0.1)

    def report(self) -> dict[str, Any]:
        """Peaks, totals, and a short course of the memory."""
        step = max(1, len(self.samples) // 40)
        codes = re.findall(r'^deepseek_r1_http_responses_total\{code="(\d+)"\} (\S+)$', self._text, re.MULTILINE)
        return {
            "samples": len(self.samples),
            "pss_peak_mib": round(max(s.pss for s in self.samples) / 2**20, 1),
            "pss_engine_peak_mib": round(max(s.pss_engine for s in self.samples) / 2**20, 1),
            "pss_first_mib": round(self.samples[0].pss / 2**20, 1),
            "pss_last_mib": round(self.samples[-1].pss / 2**20, 1),
            "pss_course": [[round(s.seconds), s.phase, s.pss >> 20] for s in self.samples[::step]],
            "running_peak": int(max(s.values["requests_running"] for s in self.samples)),
            "waiting_peak": int(max(s.values["requests_waiting"] for s in self.samples)),
            "kv_blocks_peak": int(max(s.values["kv_blocks_used"] for s in self.samples)),
            "kv_blocks_total": int(self._value("deepseek_r1_kv_blocks_total")),
            **{name.removesuffix("_total"): int(self._value(f"deepseek_r1_{name}")) for name in TOTALS},
            "responses": {code: int(float(count)) for code, count in codes},
            "server_errors": sum(int(float(count)) for code, count in codes if code >= "500"),
        }
