"""A hub on this machine: the API that lists repositories, their files, storage on another host, all that goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


def object_id(body: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class Request:
    """What was asked, and how many bytes of a file's body were sent for it."""

    method: str
    path: str
    range: str | None
    token: str | None
    host: str
    sent: int = 0


@dataclass
class Hub:
    """`repos` maps an id to its files. The rest is what goes wrong, and what was seen."""

    repos: dict[str, dict[str, bytes]]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    listed: Callable[[list[dict[str, Any]]], Any] = lambda siblings: siblings
    served: dict[str, bytes] = field(default_factory=dict)  # another body than the one that is listed
    refuse: tuple[int, dict[str, str]] | None = None
    refuse_files: tuple[int, dict[str, str]] | None = None
    cut: list[int | None] = field(default_factory=list)  # bytes after which the next bodies end, None: whole
    reset: bool = False  # cut with a TCP reset, not with an end
    stall: threading.Event | None = None  # a body that was cut waits for this before the connection ends
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""

    def bodies(self, name: str) -> list[Request]:
        """The transfers of one file's content."""
        return [seen for seen in self.requests if seen.method == "GET" and seen.path.endswith(name) and seen.sent]


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.seen = Request(self.command, path, self.headers.get("Range"), token, self.headers["Host"])
        self.hub.requests.append(self.seen)
        with contextlib.suppress(ConnectionError):
            if found := re.fullmatch(r"/storage/(\w+)/(\w+)/(.+)", path):
                self.body(f"{found[1]}/{found[2]}", found[3], {})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
                self.tree(found[1])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.repository(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], found[2], found[3])
            else:
                self.fail(404)

    def repository(self, repo: str, revision: str) -> None:
        if self.hub.refuse:
            self.fail(*self.hub.refuse)
        elif repo not in self.hub.repos:
            self.fail(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*self.hub.revisions, COMMIT):
            self.fail(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = []
            for name, body in self.hub.repos[repo].items():
                entry: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": object_id(body)}
                if is_large(name):
                    entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
                siblings.append(entry)
            commit = self.hub.revisions.get(revision, COMMIT)
            answer = {"id": repo, "sha": commit, "siblings": self.hub.listed(siblings)}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def tree(self, repo: str) -> None:
        files = [
            {"type": "file", "path": name, "size": len(body), "oid": object_id(body)}
            for name, body in self.hub.repos[repo].items()
        ]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(files).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        if self.hub.refuse_files:
            self.fail(*self.hub.refuse_files)
            return
        body = self.hub.repos[repo][name]
        headers = {"X-Repo-Commit": revision}
        if not is_large(name):
            self.body(repo, name, headers | {"ETag": f'"{object_id(body)}"'})
            return
        # As the hub: large files are a redirect to another host, and would come through xet if one let them.
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Linked-Size": str(len(body)),
            "X-Xet-Hash": hashlib.sha256(body).hexdigest(),
            "Link": f'<{self.hub.endpoint}/xet-auth>; rel="xet-auth"',
            "Location": f"{self.hub.storage}/storage/{repo}/{name}",
        }
        self.answer(302, headers, b"")

    def body(self, repo: str, name: str, headers: dict[str, str]) -> None:
        body = self.hub.served.get(name, self.hub.repos[repo][name])
        first = 0
        if self.seen.range and self.hub.ranges:
            first = int(self.seen.range.removeprefix("bytes=").removesuffix("-"))
            headers |= {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        self.send_response(206 if first else 200)
        for header, value in (headers | {"Content-Length": str(len(body) - first)}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut.pop(0) if is_large(name) and self.hub.cut else None
        rest = body[first : len(body) if cut is None else first + cut]
        self.seen.sent = len(rest)
        self.wfile.write(rest)
        if cut is not None:
            if self.hub.stall:
                self.hub.stall.wait(60)
            if self.hub.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    def fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        # A hub could echo what it was sent; nothing of this may be shown.
        self.answer(status, headers or {}, f'{{"error": "you sent {self.seen.token}"}}'.encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub` behind a port of this machine, while the context is open; its storage is another host's name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    try:
        yield hub
    finally:
        if hub.stall:
            hub.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()
