"""The windows of the server's metrics, on a clock that the test turns."""

from __future__ import annotations

import math

import pytest

from deepseek_r1.engine.request import EngineStats, ExpertLoad
from deepseek_r1.operate.metrics import ServerMetrics, quantile


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> ServerMetrics:
    made = ServerMetrics("m", clock)
    made.engine_up(1.5, 64, restart=False)
    return made


def sample(metrics: ServerMetrics, name: str, **labels: str) -> float:
    value = metrics.registry.get_sample_value(name, labels)
    assert value is not None
    return value


def test_quantile_is_the_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]
    assert quantile(values, 0.95) == 95
    assert quantile(values, 0.99) == 99
    assert quantile([3.0], 0.95) == 3
    assert math.isnan(quantile([], 0.95))


def test_utilisation_over_the_window(metrics: ServerMetrics, clock: Clock) -> None:
    clock.now += 4
    metrics.step(EngineStats(steps=1, step_seconds=1.0))
    assert sample(metrics, "gpu_utilization") == pytest.approx(0.25)  # 1 s of the 4 since the start
    clock.now += 6
    metrics.step(EngineStats(steps=2, step_seconds=6.0))
    assert sample(metrics, "deepseek_r1_gpu_utilization") == pytest.approx(0.6)
    clock.now += 10  # idle: no step says so
    assert sample(metrics, "gpu_utilization") == 0


def test_experts_by_layer(metrics: ServerMetrics) -> None:
    metrics.experts([ExpertLoad(3, 0.91, 1.5), ExpertLoad(4, 1.0, 1.0)])
    metrics.experts([ExpertLoad(3, 0.92, 1.4)])
    assert sample(metrics, "deepseek_r1_expert_utilization", layer="3") == 0.92
    assert sample(metrics, "deepseek_r1_expert_busiest", layer="3") == 1.4
    assert sample(metrics, "deepseek_r1_expert_utilization", layer="4") == 1.0


def test_guesses_are_counted(metrics: ServerMetrics) -> None:
    metrics.step(EngineStats(steps=1, draft_tokens=3, accepted_tokens=2))
    metrics.step(EngineStats(steps=2, draft_tokens=5, accepted_tokens=2))
    assert sample(metrics, "deepseek_r1_draft_tokens_total") == 5
    assert sample(metrics, "deepseek_r1_accepted_tokens_total") == 2


def test_latencies_leave_the_window(metrics: ServerMetrics, clock: Clock) -> None:
    metrics.finished(50.0)
    clock.now += 200
    metrics.finished(1.0)
    assert sample(metrics, "deepseek_r1_inference_latency_p99", model="m") == 50
    clock.now += 150
    assert sample(metrics, "deepseek_r1_inference_latency_p99", model="m") == 1
    assert sample(metrics, "deepseek_r1_inference_latency_count", model="m") == 2


def test_counters_survive_an_engine(metrics: ServerMetrics) -> None:
    metrics.step(EngineStats(steps=3, generated_tokens=10, prompt_tokens=30, prefix_hit_tokens=10))
    assert sample(metrics, "kv_cache_hit_rate") == pytest.approx(0.25)
    metrics.engine_down()
    assert sample(metrics, "deepseek_r1_engine_ready") == 0
    metrics.engine_up(2.5, 32, restart=True)
    metrics.step(EngineStats(steps=1, generated_tokens=4, kv_blocks_total=32, kv_blocks_used=8))
    assert sample(metrics, "deepseek_r1_generated_tokens_total") == 14
    assert sample(metrics, "deepseek_r1_steps_total") == 4
    assert sample(metrics, "deepseek_r1_engine_restarts_total") == 1
    assert sample(metrics, "deepseek_r1_model_load_time_seconds") == 2.5
    assert sample(metrics, "deepseek_r1_kv_cache_usage") == 0.25
    assert sample(metrics, "kv_cache_hit_rate") == 0


def test_recent_hit_rate(metrics: ServerMetrics, clock: Clock) -> None:
    metrics.step(EngineStats(steps=1, prompt_tokens=100))
    clock.now += 20
    metrics.step(EngineStats(steps=2, prompt_tokens=110, prefix_hit_tokens=30))
    assert sample(metrics, "deepseek_r1_prefix_hit_rate") == pytest.approx(0.75)
    assert sample(metrics, "kv_cache_hit_rate") == pytest.approx(30 / 140)


def test_tokens_of_one_message_share_its_time(metrics: ServerMetrics) -> None:
    metrics.next_tokens(0.4, 4)
    assert sample(metrics, "deepseek_r1_inter_token_latency_seconds_count") == 4
    assert sample(metrics, "deepseek_r1_inter_token_latency_seconds_sum") == pytest.approx(0.4)
