"""Queue limits, API keys, and the metrics that show both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from server_process import Running, chat, script, wait_for

Start = Callable[..., Running]

EXPECTED_SERIES = [
    'deepseek_r1_inference_latency_bucket{le="1.0",model="tiny"}',
    'deepseek_r1_inference_latency_count{model="tiny"}',
    'deepseek_r1_inference_latency_p95{model="tiny"}',
    'deepseek_r1_inference_latency_p99{model="tiny"}',
    "deepseek_r1_gpu_utilization",
    "gpu_utilization",
    "kv_cache_hit_rate",
    "inter_node_latency",
    "deepseek_r1_time_to_first_token_seconds_count",
    "deepseek_r1_inter_token_latency_seconds_count",
    "deepseek_r1_queue_time_seconds_count",
    "deepseek_r1_batch_utilization_count",
    "deepseek_r1_kv_cache_usage",
    "deepseek_r1_prefix_hit_rate",
    "deepseek_r1_model_load_time_seconds",
    "deepseek_r1_requests_running",
    "deepseek_r1_requests_waiting",
    "deepseek_r1_generated_tokens_total",
    "deepseek_r1_prompt_tokens_total",
    "deepseek_r1_engine_restarts_total",
    'deepseek_r1_http_responses_total{code="200"}',
]


def test_full_queue(start: Start) -> None:
    server = start(max_concurrent=2, max_queue=1)

    def ask(_: int) -> tuple[int, dict[str, str], dict]:
        body = {"prompt": script(say="x" * 20, delay=0.03)}
        answer = server.http.post("/v1/completions", json=body)
        return answer.status_code, dict(answer.headers), answer.json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert sorted(status for status, _, _ in answers) == [200] * 3 + [429] * 5
    for status, headers, body in answers:
        if status == 429:
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert body["error"]["type"] == "rate_limit_error"
            assert 1 <= int(headers["retry-after"]) <= 60
        else:
            assert body["choices"][0]["text"] == "x" * 20
    assert server.metric('deepseek_r1_http_responses_total{code="429"}') == 5
    with server.client() as client:
        # Three choices fit, four never will.
        assert len(client.completions.create(model="default", prompt=script(say="a"), n=3).choices) == 3
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="default", prompt=script(say="a"), n=4)
        assert caught.value.param == "n"
        stream = client.completions.create(model="default", prompt=script(forever=True, delay=0.05), n=3, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="default", messages=chat(say="a"))
        stream.close()
        wait_for(lambda: server.metric("deepseek_r1_requests_running") == 0, 1.0)
        assert client.completions.create(model="default", prompt=script(say="a")).choices[0].text == "a"


def test_api_key(start: Start) -> None:
    server = start(api_key="sesame-48151623")
    with server.client(api_key="wrong") as wrong, pytest.raises(openai.AuthenticationError) as caught:
        wrong.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    with server.client(api_key="sesame-48151623") as right:
        assert right.models.list().data[0].id == "tiny"
        assert right.completions.create(model="default", prompt=script(say="a")).choices[0].text == "a"
    for path, status in [("/health", 200), ("/ready", 200), ("/", 200), ("/page/app.js", 200)]:
        assert server.http.get(path).status_code == status
    for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
        assert server.http.get(path).status_code == 401
    for value in ("", "Bearer", "Basic sesame-48151623", "sesame-48151623", "Bearer sesame-4815162 3"):
        assert server.http.get("/v1/models", headers={"Authorization": value}).status_code == 401
    assert server.http.get("/v1/models", headers={"Authorization": "bearer sesame-48151623"}).status_code == 200
    assert "sesame" not in server.log.read_text()
    environment = server.engine().environ()
    assert "DEEPSEEK_R1_API_KEY" not in environment
    assert environment["MALLOC_ARENA_MAX"] == "2"


def test_metrics_have_their_names(server: Running) -> None:
    with server.client() as client:
        client.completions.create(model="default", prompt=script(say="hello", delay=0.01))
    answer = server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    names = {line.rpartition(" ")[0] for line in answer.text.splitlines() if not line.startswith("#")}
    assert [name for name in EXPECTED_SERIES if name not in names] == []
    assert 0 < server.metric("gpu_utilization") <= 1
    assert 0 < server.metric("kv_cache_hit_rate") < 1
    wait_for(lambda: 0 < server.metric("inter_node_latency") < 1)


def test_metrics_count(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.completions.create(model="default", prompt=list(b"a" * 40), max_tokens=1)
        client.completions.create(model="default", prompt=script(say="hello", delay=0.05))
    assert server.metric("deepseek_r1_generated_tokens_total") == 1 + 6
    assert server.metric('deepseek_r1_inference_latency_count{model="tiny"}') == 2
    assert server.metric("deepseek_r1_time_to_first_token_seconds_count") == 2
    assert server.metric("deepseek_r1_inter_token_latency_seconds_count") == 5
    assert 0.25 <= server.metric("deepseek_r1_inter_token_latency_seconds_sum") <= 0.6
    assert server.metric('deepseek_r1_inference_latency_p99{model="tiny"}') >= 0.25
    assert server.metric("deepseek_r1_model_load_time_seconds") < 1
    assert server.metric("deepseek_r1_kv_blocks_total") == 64
