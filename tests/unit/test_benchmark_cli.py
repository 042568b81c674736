from __future__ import annotations

import json
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from deepseek_r1.cli.main import benchmark_main, main
from deepseek_r1.operate.benchmark import Sample, percentile, prompt_words, summarise

FIRST, GAP, EVENTS, PER_EVENT = 0.06, 0.02, 5, 2


class Fake(ThreadingHTTPServer):
    """An OpenAI-compatible server that streams EVENTS events of PER_EVENT tokens at a known pace."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.paths: list[str] = []
        self.flying = self.most = 0
        self.refuse_from = 10**9
        self.break_off = False
        self.usage = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(self.headers["Authorization"])
            self.server.paths.append(self.path)
            self.server.flying += 1
            self.server.most = max(self.server.most, self.server.flying)
            refused = len(self.server.bodies) > self.server.refuse_from
        try:
            self._refuse() if refused else self._stream(body)
        finally:
            with self.server.lock:
                self.server.flying -= 1

    def _refuse(self) -> None:
        data = json.dumps({"error": {"message": "the queue is full", "code": "queue_full"}}).encode()
        self.send_response(429)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": a comment\n\n")
        time.sleep(FIRST)
        for index in range(EVENTS):
            time.sleep(GAP if index else 0)
            self._send({"choices": [{"index": 0, "text": " word" * PER_EVENT, "finish_reason": None}]})
            if self.server.break_off:
                return
        self._send({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        if self.server.usage:
            words = len(body["prompt"].split())
            self._send({"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": EVENTS * PER_EVENT}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.delenv("DEEPSEEK_R1_API_KEY", raising=False)
    with Fake() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


def test_figures_of_a_server_whose_pace_is_known(
    server: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    code = benchmark_main(
        f"my-model --url {server.url} --concurrency 1,3 --prompts 4 --prompt-tokens 11 --max-tokens 10 "
        f"--api-key sesame --json {file}".split()
    )
    output = capsys.readouterr()
    assert code == 0, output.err
    report = json.loads(file.read_text())
    one, three = report["levels"]
    assert [(level["concurrency"], level["requests"], level["failed"]) for level in (one, three)] == [
        (1, 4, 0),
        (3, 4, 0),
    ]
    assert one["output_tokens"] == 4 * EVENTS * PER_EVENT
    assert one["prompt_tokens"] == 4 * 11
    for level in (one, three):
        # The lower bounds are exact (the fake server sleeps that long); the upper ones leave room for a busy machine.
        assert 1000 * FIRST <= level["time_to_first_token_ms"]["p50"] < 1000 * FIRST + 150
        between = 1000 * GAP * (EVENTS - 1) / (EVENTS * PER_EVENT - 1)
        assert between * 0.9 <= level["inter_token_ms"]["p50"] < between + 30
        assert level["time_to_first_token_ms"]["p50"] <= level["time_to_first_token_ms"]["p99"]
        rate = level["output_tokens"] / level["seconds"]
        assert level["output_tokens_per_second"] == pytest.approx(rate)
    assert one["seconds"] >= 4 * (FIRST + GAP * (EVENTS - 1))
    assert three["seconds"] < one["seconds"]
    assert server.most == 3

    assert len(server.bodies) == 1 + 4 + 4
    assert {body["model"] for body in server.bodies} == {"my-model"}
    assert {body["max_tokens"] for body in server.bodies} == {10}
    assert all(body["stream"] and body["ignore_eos"] and body["temperature"] == 0 for body in server.bodies)
    assert len({body["prompt"] for body in server.bodies}) == 9
    assert set(server.headers) == {"Bearer sesame"}
    assert set(server.paths) == {"/v1/completions"}

    assert report["kind"] == "deepseek-benchmark" and report["mode"] == "url"
    assert report["machine"]["cpu_count"] >= 1 and report["versions"]["deepseek_r1"]
    assert "sesame" not in file.read_text()
    assert list(tmp_path.iterdir()) == [file]

    header, rule, first, second = output.out.splitlines()
    assert header.split()[:3] == ["concurrency", "requests", "failed"] and set(rule) == {"-", " "}
    assert first.split()[:3] == ["1", "4", "0"] and second.split()[:3] == ["3", "4", "0"]
    assert float(first.split()[3]) == pytest.approx(one["output_tokens_per_second"], abs=0.06)
    progress = [json.loads(line) for line in output.err.splitlines()]
    assert progress[-1] == {"event": "benchmark", "concurrency": 3, "done": 4, "requests": 4}


def test_an_address_with_its_own_path(server: Fake) -> None:
    assert main(["benchmark", "--url", f"{server.url}/proxy/v1/", "--concurrency", "1", "--prompts", "1"]) == 0
    assert set(server.paths) == {"/proxy/v1/completions"}
    assert set(server.headers) == {None}


def test_refused_requests_are_counted_and_fail_the_run(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse_from = 3
    assert benchmark_main(["--url", server.url, "--concurrency", "2", "--prompts", "4"]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].split()[:3] == ["2", "4", "2"]
    assert "429 the queue is full" in output.err


def test_nothing_is_measured_when_the_first_request_fails(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse_from = 0
    assert benchmark_main(["--url", server.url, "--concurrency", "2"]) == 1
    assert "error: the first request failed: " in capsys.readouterr().err
    assert len(server.bodies) == 1


def test_a_stream_that_breaks_off_is_a_failure(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    server.break_off = True
    assert benchmark_main(["--url", server.url, "--concurrency", "1"]) == 1
    assert "broke off before its end" in capsys.readouterr().err


def test_events_are_counted_where_no_usage_is_reported(server: Fake, tmp_path: Path) -> None:
    server.usage = False
    file = tmp_path / "r.json"
    assert benchmark_main(["--url", server.url, "--concurrency", "1", "--prompts", "2", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["levels"][0]["output_tokens"] == 2 * EVENTS


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_main(["--url", "http://127.0.0.1:9", "--concurrency", "1"]) == 1
    error = capsys.readouterr().err
    assert "Connection refused" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--url", "localhost:8080"], "is not an http address"),
        (["--concurrency", "0"], "concurrency must be a list of integers from 1 to 1024"),
        (["--concurrency", ","], "at least one level"),
        (["--json", "/no/such/folder/r.json", "--url", "http://127.0.0.1:9"], "its folder does not exist"),
        (["--concurrency", "1;4"], "concurrency must be a list of integers"),
    ],
)
def test_settings_that_are_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_main(argv) == 2
    assert words in capsys.readouterr().err


class LocalModel:
    """Stands in for `DeepSeekModel`: words are tokens, and a chunk carries two of them."""

    loaded: ClassVar[list[dict[str, Any]]] = []
    calls: ClassVar[list[dict[str, Any]]] = []

    class tokenizer:
        @staticmethod
        def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
            assert not add_special_tokens
            return [sum(map(ord, word)) for word in text.split() for _ in range(2)]

    @classmethod
    @contextmanager
    def from_pretrained(cls, name: str, **settings: Any) -> Iterator[LocalModel]:
        cls.loaded.append({"name": name, **settings})
        yield cls()

    def generate(self, prompt: list[int], **settings: Any) -> Iterator[Any]:
        self.calls.append({"prompt": prompt, **settings})
        for _ in range(3):
            time.sleep(0.01)
            yield types.SimpleNamespace(text="a b", reasoning="", token_ids=[1, 2], finish_reason=None)
        yield types.SimpleNamespace(text="", reasoning="", token_ids=[], finish_reason="length")


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = types.ModuleType("deepseek_r1.serve.local")
    fake.DeepSeekModel = LocalModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepseek_r1.serve.local", fake)
    monkeypatch.setattr(LocalModel, "loaded", [])
    monkeypatch.setattr(LocalModel, "calls", [])
    file = tmp_path / "r.json"
    argv = "x.gguf --precision bf16 --memory 1GiB --concurrency 1,4 --prompts 2 --prompt-tokens 9 --max-tokens 6"
    assert benchmark_main([*argv.split(), "--json", str(file)]) == 0
    loaded = {"name": "x.gguf", "precision": "bf16", "memory": 1 << 30, "max_concurrent": 4, "speculative": "off"}
    assert LocalModel.loaded == [loaded]
    assert [len(call["prompt"]) for call in LocalModel.calls] == [9] * (1 + 2 + 4)
    assert all(call["ignore_eos"] and call["stream"] and call["max_tokens"] == 6 for call in LocalModel.calls)
    one, four = json.loads(file.read_text())["levels"]
    assert (one["output_tokens"], four["output_tokens"], four["requests"]) == (2 * 6, 4 * 6, 4)
    assert one["inter_token_ms"]["p50"] >= 1000 * 0.02 / 5


def test_summary_by_hand() -> None:
    samples = [
        Sample(started=0.0, events=[0.1, 0.2, 0.5], ended=0.5, prompt_tokens=10, output_tokens=5),
        Sample(started=1.0, events=[1.3], ended=1.4, prompt_tokens=20, output_tokens=4),
        Sample(started=1.0, ended=9.0, error="refused"),
    ]
    figures = summarise(samples, 2.0)
    assert (figures["requests"], figures["failed"], figures["errors"]) == (3, 1, ["refused"])
    assert (figures["output_tokens"], figures["output_tokens_per_second"]) == (9, 4.5)
    assert (figures["total_tokens_per_second"], figures["requests_per_second"]) == (19.5, 1.0)
    assert figures["time_to_first_token_ms"]["mean"] == pytest.approx(200)
    assert figures["inter_token_ms"]["mean"] == pytest.approx(100)  # (0.5 - 0.1) over 4 gaps; the other has one event
    assert figures["request_ms"]["p50"] == pytest.approx(450)
    assert summarise(samples[2:], 1.0)["inter_token_ms"] is None


def test_percentiles_are_those_of_numpy() -> None:
    values = sorted(np.random.default_rng(1).exponential(size=37).tolist())
    for q in (0, 1, 50, 95, 99, 100):
        assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-12)


def test_prompts_depend_on_seed_and_index_alone() -> None:
    assert prompt_words(3, 5, 40) == prompt_words(3, 5, 40)
    assert len({" ".join(prompt_words(seed, index, 40)) for seed in range(3) for index in range(20)}) == 60
