"""Evaluation over HTTP: our server, a fake one that is full, breaks and lies, and lm-eval against our server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from server_process import Running, script

from deepseek_r1.cli.main import main
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.evaluate import remote
from deepseek_r1.evaluate.remote import UrlTarget
from deepseek_r1.evaluate.targets import Ask, Reply


def asks(count: int, prompt: str = "q") -> list[Ask]:
    return [Ask(f"q{i}", f"{prompt}{i}", 20, 0.5, i) for i in range(count)]


# --- our server -------------------------------------------------------------------------------------------------------

SAYS = [
    "#### 4",
    "4",
    "<think>\n4\n</think>\nIt is 4 apples",
    "<think>\n4",
    "5",
    "a\n4.0",
    "4 of those, I'd say 5",
    "four",
]
"""What the scripted engine answers to each question; of these 4 are right."""


def quiz(folder: Path) -> Path:
    path = folder / "quiz.jsonl"
    lines = [{"question": script(say=words), "answer": "2 + 2 = 4\n#### 4"} for words in SAYS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_of_our_server_are_judged(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEEPSEEK_R1_API_KEY", raising=False)
    words = ["evaluate", "--url", server.url, "--suite", "gsm8k", "--data", str(quiz(tmp_path)), "--json"]
    words += ["--out", str(tmp_path / "out"), "--max-tokens", "50"]
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["n"], row["mean"], row["truncated"]) == (8, 0.5, 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    texts = {int(line["place"]) - 1: line["text"] for line in lines}
    assert texts[2] == SAYS[2] and texts[3] == SAYS[3], "thinking comes back within its tags"
    assert all(line["tokens"] > 0 for line in lines)
    assert main([*words, "--max-tokens", "2"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["truncated"], row["mean"]) == (6, 1 / 8), "answers of one token and their end are not cut"


def test_seeds_reach_the_server(server: Running) -> None:
    target = UrlTarget(server.url, "default", concurrency=4)
    first = dict(target.answers(asks(6)))
    assert sorted(first) == list(range(6)) and dict(target.answers(asks(6))) == first
    same = [Ask("q", "the same", 20, 0.5, seed) for seed in (1, 1, 2)]
    replies = dict(target.answers(same))
    assert replies[0] == replies[1] != replies[2]


# --- a fake one -------------------------------------------------------------------------------------------------------


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.flying = self.most = 0
        self.answer: Callable[[int, dict[str, Any]], tuple[int, bytes]] = lambda number, body: (200, said("ok"))

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
            number = len(self.server.bodies)
            self.server.flying += 1
            self.server.most = max(self.server.most, self.server.flying)
        threading.Event().wait(0.02)
        status, data = self.server.answer(number, body)
        with self.server.lock:
            self.server.flying -= 1
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def said(content: Any, reason: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_what_is_sent(fake: Fake) -> None:
    target = UrlTarget(f"{fake.url}/proxy/v1/", "their-model", api_key="sesame", concurrency=3)
    assert dict(target.answers(asks(8))) == {i: Reply("ok", 7, False) for i in range(8)}
    assert set(fake.paths) == {"/proxy/v1/chat/completions"} and set(fake.headers) == {"Bearer sesame"}
    assert sorted(fake.bodies, key=lambda body: body["seed"])[3] == {
        "model": "their-model",
        "messages": [{"role": "user", "content": "q3"}],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 3,
    }
    assert fake.most == 3
    assert "sesame" not in json.dumps(target.identity)


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (said("42", reasoning_content="hm"), Reply("<think>\nhm\n</think>\n42", 7, False)),
        (said("42", reasoning="hm"), Reply("<think>\nhm\n</think>\n42", 7, False)),
        (said(None, "length", reasoning_content="hm"), Reply("<think>\nhm", 7, True)),
        (said("4", "length"), Reply("4", 7, True)),
        (said(None), Reply("", 7, False)),
        (said("half \ud800"), Reply("half ?", 7, False)),
        (b'{"choices": [{"message": {"content": "x"}}]}', Reply("x", 0, False)),
    ],
)
def test_forms_of_answers(body: bytes, reply: Reply, fake: Fake) -> None:
    fake.answer = lambda number, _: (200, body)
    assert list(UrlTarget(fake.url, "m").answers(asks(1))) == [(0, reply)]


def test_a_full_server_is_asked_again(fake: Fake) -> None:
    fake.answer = lambda number, _: (429, b"{}") if number % 2 else (200, said("ok"))
    assert len(list(UrlTarget(fake.url, "m", concurrency=1).answers(asks(3)))) == 3
    assert len(fake.bodies) == 6


def test_a_server_that_stays_full(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRIES", 3)
    fake.answer = lambda number, _: (429, b'{"error": {"message": "the queue is full"}}')
    with pytest.raises(DeepSeekError, match="q0: 429 the queue is full"):
        list(UrlTarget(fake.url, "m").answers(asks(1)))
    assert len(fake.bodies) == 3


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error": {"message": "too long"}}', "400 too long"),
        (500, b"<html>", "500 <html>"),
        (404, b'"gone"', "404 gone"),
        (200, b"<html>", "no chat completion"),
        (200, b"{}", "no chat completion"),
        (200, b"[" * 100_000, "no chat completion"),
        (200, b'{"choices": []}', "no chat completion"),
        (200, b'{"choices": [{"message": {"content": 5}}]}', "no chat completion"),
        (200, b'{"choices": [{"message": {"content": "x"}}], "usage": 5}', "no chat completion"),
        (200, b" " * ((16 << 20) + 1), "more than 16 MiB"),
    ],
)
def test_servers_that_refuse_or_lie(status: int, body: bytes, words: str, fake: Fake) -> None:
    fake.answer = lambda number, _: (status, body)
    with pytest.raises(DeepSeekError, match=words):
        list(UrlTarget(fake.url, "m").answers(asks(1)))


def test_after_a_failure_no_more_is_asked(fake: Fake) -> None:
    fake.answer = lambda number, _: (200, said("ok")) if number < 3 else (400, b"{}")
    with pytest.raises(DeepSeekError):
        list(UrlTarget(fake.url, "m", concurrency=2).answers(asks(50)))
    assert len(fake.bodies) <= 7


def test_nobody_listens() -> None:
    with pytest.raises(DeepSeekError, match="Connection refused") as error:
        list(UrlTarget("http://127.0.0.1:9", "m").answers(asks(3)))
    assert "server runs there" in error.value.remedy


# --- lm-eval ----------------------------------------------------------------------------------------------------------

TASK = """
task: scripted_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 40}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
PROGRAM = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

found = {}
for model, path in (("local-chat-completions", "chat/completions"), ("local-completions", "completions")):
    answers = lm_eval.simple_evaluate(
        model=model,
        model_args={"model": "default", "base_url": f"{sys.argv[1]}/v1/{path}", "tokenizer_backend": None,
                    "tokenized_requests": False, "num_concurrent": 2},
        tasks=["scripted_sums"],
        task_manager=TaskManager(include_path=sys.argv[2], include_defaults=False),
        apply_chat_template=model == "local-chat-completions",
        bootstrap_iters=0,
    )
    said = [sample["resps"][0][0] for sample in answers["samples"]["scripted_sums"]]
    found[model] = answers["results"]["scripted_sums"]["exact_match,none"], said
print(json.dumps(found))
"""


def test_lm_eval_gets_the_score_that_the_scripted_answers_imply(server: Running, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity", reason="lm-eval's extra `api` is not installed")
    says = ["4", "5", "four", "4", "4\n\nor 5"]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": script(say=words), "answer": "4"}) + "\n" for words in says))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.url, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | offline,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "local-chat-completions": [3 / 5, ["4", "5", "four", "4", "4"]],
        "local-completions": [3 / 5, ["4", "5", "four", "4", "4"]],
    }
