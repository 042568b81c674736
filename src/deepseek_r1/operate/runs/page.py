"""The live page of a run: a small server for this machine alone, and the page's files. No build, no foreign hosts."""

from __future__ import annotations

import errno
import json
import logging
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import parse_qs, urlsplit

import msgspec

from deepseek_r1.core.errors import ConfigError, DeepSeekError
from deepseek_r1.operate.runs.contents import EVALUATION_HEADER, evaluation_cells, settings
from deepseek_r1.operate.runs.read import METRICS, follow, read_run, read_step
from deepseek_r1.operate.runs.rollouts import Filters, RolloutIndex, Sign

STATIC = Path(__file__).with_name("static")
ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")
MAX_ROLLOUTS = 100
"""Rollouts in one answer."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_JSON = "application/json"

log = logging.getLogger(__name__)


class RunServer(ThreadingHTTPServer):
    """Serves the page of the run in `folder` on the loopback address; port 0 takes a free one.

    Raises `RunError` for a folder that holds no run, `ConfigError` for a port that can't be listened on.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        read_run(folder)
        self.folder = folder
        self.index = RolloutIndex(folder)
        self.index_lock = threading.Lock()
        self.files = {f"/static/{path.name}": path for path in STATIC.iterdir() if path.suffix in _TYPES}
        self.files["/"] = STATIC / "index.html"
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            words = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on: {error.strerror}"
            raise ConfigError(
                f"port {port} {words}", remedy="use --port with another port, or 0 for a free one"
            ) from None

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong in one line; a page that was closed while it was answered is no fault."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, ConnectionError | TimeoutError) else logging.ERROR
        log.log(level, "the run's page: %s: %s", type(error).__name__, error)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        return f"http://{ADDRESS}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a file of the page, or with what the run's folder says now."""
        name = self.headers.get("Host", "").lower()
        host, colon, port = name.rpartition(":")
        if (host if colon and port.isdecimal() else name) not in HOSTS:
            # A web page that rebinds its own name to this machine would otherwise read the run.
            self._send(403, _JSON, _json({"error": f"use http://{ADDRESS}: the Host header names another machine"}))
            return
        url = urlsplit(self.path)
        try:
            self._answer(url.path, {name: values[-1] for name, values in parse_qs(url.query).items()})
        except ConfigError as error:
            self._send(400, _JSON, _json({"error": error.message}))
        except DeepSeekError as error:
            self._send(500, _JSON, _json({"error": str(error)}))

    def _answer(self, path: str, query: Mapping[str, str]) -> None:
        server = cast("RunServer", self.server)
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "/run.json": lambda: _run(server.folder),
            "/rollouts.json": lambda: _rollouts(server, query),
        }
        if file := server.files.get(path):
            self._send(200, _TYPES[file.suffix], file.read_bytes())
        elif path == f"/{METRICS}":
            chunk = follow(server.folder / METRICS, _number(query, "from") or 0)
            rows = [read_step(line) for _, line in chunk.lines()]
            body = b"".join(_json(row) + b"\n" for row in rows if row is not None)
            places = {"Run-From": str(chunk.start), "Run-Next": str(chunk.next)}
            self._send(200, "application/x-ndjson", body, places)
        elif path in answers:
            self._send(200, _JSON, _json(answers[path]()))
        else:
            self._send(404, _JSON, _json({"error": "there is no such page"}))

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        fields = {**HEADERS, **(headers or {}), "Content-Type": kind, "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """What the Server header says."""
        return "deepseek-r1"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests come every second: they are no news."""
        log.debug(format, *args)


def _run(folder: Path) -> dict[str, Any]:
    """What the page shows besides curves and rollouts, in the words that it shows."""
    run = read_run(folder)
    steps, status = run.fields.get("steps"), run.fields.get("status")
    return {
        "name": run.name,
        "status": status if isinstance(status, str) else None,
        "steps": steps if type(steps) is int else None,
        "age": None if run.written is None else max(0.0, time.time() - run.written),
        "evaluation": {"header": EVALUATION_HEADER, "rows": [evaluation_cells(row) for row in run.evaluation]},
        "run": settings({name: value for name, value in run.fields.items() if value not in ({}, None)}),
        "data": settings({name: value for name, value in (run.data or {}).items() if name != "histogram"}),
        "problems": run.problems,
    }


def _rollouts(server: RunServer, query: Mapping[str, str]) -> dict[str, Any]:
    sign = query.get("sign")
    if sign is not None and sign not in get_args(Sign):
        raise ConfigError(f"sign must be one of {', '.join(get_args(Sign))}")
    filters = Filters(query.get("family"), cast("Sign | None", sign), _number(query, "step"))
    limit = _number(query, "limit")
    with server.index_lock:
        server.index.refresh()
        found = server.index.select(
            filters, before=_number(query, "before"), limit=min(MAX_ROLLOUTS, 50 if limit is None else limit)
        )
        families = list(server.index.families)
    return {
        "rows": [{"id": place, **msgspec.to_builtins(row)} for place, row in found.rows],
        "matching": found.matching,
        "more": found.more,
        "newest": found.newest,
        "families": families,
    }


def _number(query: Mapping[str, str], name: str) -> int | None:
    """A number that the query gives, None where it gives none. Raises `ConfigError`."""
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise ConfigError(f"{name} must be an integer of at least 0")
    return int(text)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
