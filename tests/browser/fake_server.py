"""An OpenAI-compatible server without a model: the chat page's counterpart, whose answers the question chooses.

The last user message picks the behaviour by its first word (see `Answers`); anything else is echoed as markdown.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "src" / "deepseek_r1" / "serve" / "page"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

Event = dict[str, Any]


def delta(**fields: str) -> Event:
    """One streamed chunk."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop") -> Event:
    """The chunk that ends a choice."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int, completion: int, *, reasoning: int = 0, cached: int = 0) -> Event:
    """The chunk that `stream_options.include_usage` asks for."""
    return {
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        },
    }


class FakeServer:
    """Starts, stops and starts again on one port. `requests` are the bodies of the chats it was asked for."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.cancelled = threading.Event()
        self.ready = True
        self.not_ready: dict[str, Any] = {"error": {"message": "the engine was lost", "code": "engine_restarting"}}
        self.models = ["smollm2-135m-instruct"]
        self.api_key = ""
        self.texts: dict[str, str] = {}
        """Answers by question, for the script that takes the pictures."""
        self._http: ThreadingHTTPServer | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        owner = self

        class Handler(_Handler):
            fake = owner

        self._stopping.clear()
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.port = self._http.server_address[1]
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        if self._http is None:
            return
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._http = None
        for connection in list(self.connections):  # as when a process dies: kept-alive connections end too
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        self._threads.clear()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Sleep, but not past the end of the server."""
        self._stopping.wait(seconds)

    def answer(self, question: str) -> Iterator[Event | bytes | float]:
        """What to stream: an event, raw bytes, or a pause in seconds."""
        word, _, rest = question.partition(" ")
        if question in self.texts:
            yield from self._think_then(self.texts[question])
        elif word == "slow":
            for index in range(2000):
                yield delta(content=f"word{index} " + ("\n\n" if index % 12 == 11 else ""))
                yield 0.02
        elif word == "long":
            for index in range(30):
                yield delta(content=f"Paragraph {index}.\n\n")
                yield 0.01
            yield finish("length")
            yield usage(12, 480)
        elif word == "think":
            for piece in ("First ", "I weigh\n\n", "- one\n", "- two **points**"):
                yield delta(reasoning_content=piece)
                yield 0.15
            for piece in ("The answer ", "is **42**."):
                yield delta(content=piece)
                yield 0.05
            yield finish()
            yield usage(20, 140, reasoning=120, cached=16)
        elif word == "split":  # every byte by itself, "\r\n" line ends, comments, events of several data lines
            text = "Zürich 東京 🦊\n\n| a | b |\n|---|---|\n| ü | 🦊 |\n"
            body = "".join(f"data: {json.dumps(delta(content=char), ensure_ascii=False)}\r\n\r\n" for char in text)
            spread = json.dumps(finish(), indent=1).replace("\n", "\ndata: ")
            body = f": keep-alive\r\n\r\nevent: message\r\n{body}data: {spread}\r\n\r\n"
            raw = body.encode()
            for at in range(0, len(raw), 7):
                yield raw[at : at + 7]
                if at % 350 == 0:
                    yield 0.001
        elif word == "streamerror":
            yield delta(content="Half of ")
            yield 0.05
            error = {"error": {"message": "The engine died.", "type": "server_error", "code": "engine_died"}}
            yield f"event: error\ndata: {json.dumps(error)}\n\n".encode()
        elif word == "cut":
            yield delta(content="Half of ")
            yield 0.05
            yield b""  # ends the connection
        elif word == "silent":  # alive, but without a token
            for _ in range(200):
                yield b": keep-alive\n\n"
                yield 0.02
        else:
            text = rest if word == "echo" else f"You said: {question}"
            for at in range(0, len(text), 5):
                yield delta(content=text[at : at + 5])
            yield finish()
            yield usage(9, 21, cached=4)

    def _think_then(self, text: str) -> Iterator[Event | bytes | float]:
        reasoning, _, content = text.rpartition("</think>")
        yield 0.12
        for name, part in (("reasoning_content", reasoning), ("content", content)):
            for at in range(0, len(part), 4):
                yield delta(**{name: part[at : at + 4]})
                yield 0.012
        yield finish()
        yield usage(38, len(text) // 4, reasoning=len(reasoning) // 4, cached=32)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests' output is theirs."""

    def handle(self) -> None:
        self.fake.connections.add(self.connection)
        try:
            super().handle()
        except OSError:
            self.close_connection = True
        finally:
            self.fake.connections.discard(self.connection)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/ready":
            self.send_json(200, {"status": "ready"}) if self.fake.ready else self.send_json(503, self.fake.not_ready)
        elif path == "/v1/models":
            if self.refuses():
                return
            self.send_json(200, {"object": "list", "data": [{"id": name} for name in self.fake.models]})
        elif path == "/" or path.startswith("/page/"):
            name = path.removeprefix("/page/") if path != "/" else "index.html"
            file = PAGE / name
            if "/" in name or not file.is_file():
                self.send_json(404, {"error": {"message": f"no page file {name}"}})
            else:
                self.send_body(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self.send_json(404, {"error": {"message": "not found"}})

    def refuses(self) -> bool:
        given = self.headers.get("Authorization")
        self.fake.authorizations.append(given)
        if self.fake.api_key and given != f"Bearer {self.fake.api_key}":
            error = {"message": "Incorrect API key.", "type": "invalid_request_error", "code": "invalid_api_key"}
            self.send_json(401, {"error": error})
            return True
        return False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self.send_json(404, {"error": {"message": "not found"}})
            return
        if self.refuses():
            return
        self.fake.requests.append(body)
        question = body["messages"][-1]["content"]
        if question.startswith("badrequest"):
            message = "max_tokens: 99999 is more than the context of 8192 tokens."
            error = {"message": message, "type": "invalid_request_error", "param": "max_tokens", "code": "too_long"}
            self.send_json(400, {"error": error})
        elif question.startswith("busy"):
            error = {"message": "The queue is full.", "type": "rate_limit_error", "code": "queue_full", "param": None}
            self.send_json(429, {"error": error}, {"Retry-After": "3"})
        elif question.startswith("nojson"):
            self.send_body(502, b"<html><script>alert(1)</script>Bad gateway</html>", "text/html")
        elif question.startswith("die"):
            self.close_connection = True
            self.connection.close()
        else:
            self.stream(question)

    def stream(self, question: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for item in self.fake.answer(question):
                if self.fake.stopping:
                    return
                if isinstance(item, float):
                    self.wfile.flush()
                    self.fake.pause(item)
                elif item == b"":
                    return
                elif isinstance(item, bytes):
                    self.wfile.write(item)
                else:
                    self.wfile.write(f"data: {json.dumps(item)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.fake.cancelled.set()

    def send_json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.send_body(status, json.dumps(body).encode(), "application/json", headers)

    def send_body(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": CSP,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve the page by hand, on a port of the system's choice."""
    server = FakeServer()
    server.start()
    print(server.url, flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
