"""Metrics of the running server in Prometheus' text format, under the names that its users expect."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from deepseek_r1.engine.request import EngineStats, ExpertLoad

CONTENT_TYPE = CONTENT_TYPE_LATEST
UTILISATION_SECONDS = 10.0
"""Window of the utilisation and of the windowed prefix-hit rate."""
LATENCY_SECONDS = 300.0
LATENCY_SAMPLES = 4096
PING_SAMPLES = 15

_LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_SHARE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def quantile(values: list[float], share: float) -> float:
    """The nearest-rank quantile of `values`; NaN where there are none (Prometheus' word for no data)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


class ServerMetrics:
    """All series of one server, in a registry of their own. Times are seconds; `clock` is monotonic."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._clock = clock
        self._last = EngineStats()
        self._window: deque[tuple[float, EngineStats]] = deque()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCY_SAMPLES)
        self._pings: deque[float] = deque(maxlen=PING_SAMPLES)
        self._request_series()
        self._engine_series()

    def _request_series(self) -> None:
        latency = Histogram(
            "deepseek_r1_inference_latency",
            "Seconds from the arrival of a choice to its last token",
            ["model"],
            registry=self.registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._latency = latency.labels(self._model)
        for name, share in (("p95", 0.95), ("p99", 0.99)):
            gauge = Gauge(
                f"deepseek_r1_inference_latency_{name}",
                f"The {name} of deepseek_r1_inference_latency over the last {LATENCY_SECONDS:.0f} seconds",
                ["model"],
                registry=self.registry,
            )
            gauge.labels(self._model).set_function(partial(self._latency_quantile, share))
        self._first_token = Histogram(
            "deepseek_r1_time_to_first_token_seconds",
            "Seconds from the arrival of a choice to its first token",
            registry=self.registry,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        self._inter_token = Histogram(
            "deepseek_r1_inter_token_latency_seconds",
            "Seconds between two tokens of one choice",
            registry=self.registry,
            buckets=_INTER_TOKEN_BUCKETS,
        )
        self._queue = Histogram(
            "deepseek_r1_queue_time_seconds",
            "Seconds a choice waited in the engine before a step worked on it",
            registry=self.registry,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        self._responses = Counter(
            "deepseek_r1_http_responses",
            "HTTP answers by status code (499: the client left before the answer began)",
            ["code"],
            registry=self.registry,
        )

    def _engine_series(self) -> None:
        self._batch = Histogram(
            "deepseek_r1_batch_utilization",
            "Share of --max-concurrent that a step computed",
            registry=self.registry,
            buckets=_SHARE_BUCKETS,
        )
        busy = (
            f"Share of the last {UTILISATION_SECONDS:.0f} seconds that the engine spent inside steps "
            "(on a CPU there is no GPU to report: this is the computing device's busy time, 0 to 1)"
        )
        self._function("deepseek_r1_gpu_utilization", busy, self._utilisation)
        self._function("gpu_utilization", busy, self._utilisation)
        self._function(
            "kv_cache_hit_rate",
            "Share of all prompt tokens whose keys and values came from the prefix cache, since the engine's start",
            lambda: _hit_rate(EngineStats(), self._last),
        )
        self._function(
            "deepseek_r1_prefix_hit_rate",
            f"kv_cache_hit_rate over the last {UTILISATION_SECONDS:.0f} seconds",
            self._recent_hit_rate,
        )
        self._function(
            "inter_node_latency",
            "Seconds of a round trip between the API process and the engine process, the running step included "
            f"(median of the last {PING_SAMPLES})",
            lambda: quantile(list(self._pings), 0.5),
        )
        self._function(
            "deepseek_r1_kv_cache_usage",
            "Share of the KV blocks that running requests hold",
            lambda: _ratio(self._last.kv_blocks_used, self._last.kv_blocks_total),
        )
        for name, words in {
            "kv_blocks_used": "KV blocks held by running requests",
            "kv_blocks_cached": "KV blocks kept for their prefix alone",
            "kv_blocks_total": "KV blocks in the pool",
        }.items():
            self._function(f"deepseek_r1_{name}", words, partial(self._stat, name))
        self._function("deepseek_r1_requests_running", "Choices being computed", lambda: self._last.running)
        self._function("deepseek_r1_requests_waiting", "Choices waiting in the engine", lambda: self._last.waiting)
        self._load_time = Gauge(
            "deepseek_r1_model_load_time_seconds", "Seconds the engine took to load the model", registry=self.registry
        )
        self._ready = Gauge("deepseek_r1_engine_ready", "1 while tokens can move, else 0", registry=self.registry)
        self._restarts = Counter(
            "deepseek_r1_engine_restarts", "Times the engine process was started again", registry=self.registry
        )
        self._expert_utilisation, self._expert_busiest = (
            Gauge(f"deepseek_r1_expert_{name}", words, ["layer"], registry=self.registry)
            for name, words in {
                "utilization": "Normalised entropy of the loads of a layer's experts since the start (1: even)",
                "busiest": "Load of a layer's busiest expert since the start, as a multiple of the mean",
            }.items()
        )
        self._totals = {
            name: Counter(f"deepseek_r1_{name}", words, registry=self.registry)
            for name, words in {
                "prompt_tokens": "Prompt tokens computed (those found in the prefix cache are not)",
                "prefix_hit_tokens": "Prompt tokens found in the prefix cache",
                "generated_tokens": "Tokens generated",
                "draft_tokens": "Tokens guessed ahead (--speculative)",
                "accepted_tokens": "Guesses that were right: tokens that cost no step of their own",
                "preemptions": "Choices set back for want of KV blocks and computed again",
                "steps": "Steps of the engine",
            }.items()
        }

    def _function(self, name: str, words: str, value: Callable[[], float]) -> None:
        Gauge(name, words, registry=self.registry).set_function(value)

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        """A choice got its first token, `seconds` after its arrival."""
        self._first_token.observe(seconds)
        self._queue.observe(queue_seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """A choice got `count` more tokens, `seconds` after the ones before."""
        for _ in range(count):
            self._inter_token.observe(seconds / count)

    def finished(self, seconds: float) -> None:
        """A choice got its last token, `seconds` after its arrival."""
        self._latency.observe(seconds)
        self._latencies.append((self._clock(), seconds))

    def response(self, status: int) -> None:
        """An HTTP request was answered."""
        self._responses.labels(str(status)).inc()

    def round_trip(self, seconds: float) -> None:
        """A ping came back."""
        self._pings.append(seconds)

    def experts(self, loads: list[ExpertLoad]) -> None:
        """How evenly the experts were used, layer by layer."""
        for load in loads:
            self._expert_utilisation.labels(str(load.layer)).set(load.utilisation)
            self._expert_busiest.labels(str(load.layer)).set(load.busiest)

    def engine_up(self, load_seconds: float, kv_blocks: int, *, restart: bool) -> None:
        """The engine is ready; its counters start at zero."""
        self._load_time.set(load_seconds)
        self._ready.set(1)
        self._reset(EngineStats(kv_blocks_total=kv_blocks))
        if restart:
            self._restarts.inc()

    def engine_down(self) -> None:
        """The engine is gone."""
        self._ready.set(0)
        self._reset(EngineStats())

    def _reset(self, stats: EngineStats) -> None:
        self._last = stats
        self._window.clear()
        self._window.append((self._clock(), stats))

    def step(self, stats: EngineStats) -> None:
        """Take the engine's state after a step."""
        for name, total in self._totals.items():
            total.inc(max(0, getattr(stats, name) - getattr(self._last, name)))
        if stats.steps > self._last.steps:
            self._batch.observe(_ratio(stats.last_batch, stats.max_batch))
        self._last = stats
        self._window.append((self._clock(), stats))
        self._prune()

    def _prune(self) -> EngineStats:
        """Drop what lies before the window but for the last such sample: the state at the window's start."""
        start = self._clock() - UTILISATION_SECONDS
        while len(self._window) > 1 and self._window[1][0] <= start:
            self._window.popleft()
        return self._window[0][1] if self._window else EngineStats()

    def _utilisation(self) -> float:
        before = self._prune()
        if not self._window:
            return 0.0
        elapsed = min(UTILISATION_SECONDS, self._clock() - self._window[0][0])
        return min(1.0, _ratio(self._last.step_seconds - before.step_seconds, elapsed))

    def _recent_hit_rate(self) -> float:
        before = self._prune()
        return _hit_rate(before, self._last)

    def _stat(self, name: str) -> float:
        return float(getattr(self._last, name))

    def _latency_quantile(self, share: float) -> float:
        start = self._clock() - LATENCY_SECONDS
        while self._latencies and self._latencies[0][0] < start:
            self._latencies.popleft()
        return quantile([seconds for _, seconds in self._latencies], share)

    def render(self) -> bytes:
        """All series as Prometheus' text."""
        return generate_latest(self.registry)


def _hit_rate(before: EngineStats, after: EngineStats) -> float:
    hits = after.prefix_hit_tokens - before.prefix_hit_tokens
    return _ratio(hits, hits + after.prompt_tokens - before.prompt_tokens)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
