"""What stands before every route, as plain ASGI: bug guard, allowed hosts, API key, size of the body."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import traceback
from collections.abc import Callable

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_r1.serve.errors import ApiError, internal_error

log = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/ready")
"""Answered without a key: the page asks for it, and probes have none. Files of the page lie under /page/."""


def is_loopback(address: str) -> bool:
    """Whether an IP address is reachable from this machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Guard:
    """Outermost: turns a defect of ours into a 500 without traceback, and reports the status of every answer.

    The log gets the place and the type of the exception, not its message, which may quote a prompt.
    `count` is called with the status code; 499 stands for a client that left before the answer began.
    """

    def __init__(self, app: ASGIApp, count: Callable[[int], None]) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as error:
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s while answering %s\n%s", type(error).__name__, scope["path"], place)
            if status == 0:
                await internal_error().response()(scope, receive, watched_send)
        finally:
            self.count(status or 499)


class AllowedHosts:
    """Refuse requests whose Host header names another machine: a web page that rebinds its own name to 127.0.0.1
    would otherwise reach a server that is meant for this machine alone. `hosts` None allows all.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if self.hosts is not None and scope["type"] != "lifespan":
            names = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
            if len(names) != 1 or _without_port(names[0]) not in self.hosts:
                error = ApiError(
                    403,
                    "the Host header does not name this machine; use http://127.0.0.1 or http://localhost, "
                    "or start the server with --host for access by other names",
                    code="host_not_allowed",
                )
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


class ApiKey:
    """Refuse requests without `Authorization: Bearer <key>`. Only the key's SHA-256 is kept."""

    def __init__(self, app: ASGIApp, digest: bytes | None) -> None:
        self.app = app
        self.digest = digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if self.digest is not None and scope["type"] == "http" and not self._is_open(scope["path"]):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            given = hashlib.sha256(key.strip().encode("latin-1")).digest()
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self.digest):
                error = ApiError(
                    401,
                    "this server needs its API key as 'Authorization: Bearer <key>'",
                    code="invalid_api_key",
                    kind="authentication_error",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith("/page/")


class BodyLimit:
    """Answer 413 to bodies of more than `limit` bytes, declared or sent, without reading further."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self.limit):
            error = ApiError(413, self._message(), code="request_too_large", headers={"Connection": "close"})
            await error.response()(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(413, self._message(), headers={"Connection": "close"})
            return message

        await self.app(scope, counted_receive, send)

    def _message(self) -> str:
        return f"the body is larger than {self.limit} bytes"
