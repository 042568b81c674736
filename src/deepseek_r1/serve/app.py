"""Puts the server together: the app with its routes and guards, and its life from the bound port to the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deepseek_r1.config.adapters import checked_adapters
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import ConfigError, EngineDiedError
from deepseek_r1.models.embedded import embedded_adapter
from deepseek_r1.models.locate import locate_model, served_name
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.operate.metrics import ServerMetrics
from deepseek_r1.serve import chat, completions, errors, health, middleware, streaming, text_routes
from deepseek_r1.serve.bridge import Bridge
from deepseek_r1.serve.messages import EngineSettings
from deepseek_r1.serve.service import Service
from deepseek_r1.serve.supervisor import ENGINE_COMMAND, Supervisor

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
GRACE_SECONDS = 5.0
"""How long answers in flight may go on after the server was told to stop."""


class PageFiles(StaticFiles):
    """The chat page's files, with the headers that keep foreign code out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def create_app(
    service: Service,
    *,
    api_key_digest: bytes | None = None,
    allowed_hosts: frozenset[str] | None = None,
    max_body_bytes: int = 8 << 20,
) -> FastAPI:
    """The ASGI app over `service`.

    `api_key_digest` is the SHA-256 of the key that clients must send, `allowed_hosts` the names the Host header may
    have (None: any), both checked before anything of the request is read.
    """
    app = FastAPI(
        title="deepseek-r1",
        summary="OpenAI-compatible server of one model",
        version="1",
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
    )
    app.state.service = service
    for module in (chat, completions, text_routes, health):
        app.include_router(module.router)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", PageFiles(directory=PAGE, check_dir=False))
    errors.install(app)
    streaming.install(app)
    # The last one added is the first one asked.
    app.add_middleware(middleware.BodyLimit, limit=max_body_bytes)
    app.add_middleware(middleware.ApiKey, digest=api_key_digest)
    app.add_middleware(middleware.AllowedHosts, hosts=allowed_hosts)
    app.add_middleware(middleware.Guard, count=service.metrics.response)
    return app


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` that says what is wrong with the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"{host!r} is no address of this machine", remedy="use --host 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            problem, remedy = f"port {port} is in use on {host}", "use --port with another port, or 0 for any free one"
        elif error.errno == errno.EACCES:
            problem, remedy = f"port {port} is not open to this user", "use --port 8080, or another above 1023"
        else:
            problem, remedy = f"{host}:{port} can't be listened on: {error.strerror}", "use --host 127.0.0.1"
        raise ConfigError(problem, remedy=remedy) from None
    return listener


def allowed_hosts(bound: str) -> frozenset[str] | None:
    """The Host headers that a server bound to the address `bound` answers: any, unless it is for this machine alone."""
    if not middleware.is_loopback(bound):
        return None
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{bound}]" if ":" in bound else bound})


def page_url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    bound, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(bound.partition("%")[0])
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}/" if address.version == 6 else f"http://{address}:{port}/"


class Server(uvicorn.Server):
    """uvicorn, ended in order by SIGINT and SIGTERM: answers in flight get `GRACE_SECONDS`, then a clear error."""

    def __init__(self, config: uvicorn.Config, bridge: Bridge) -> None:
        super().__init__(config)
        self.bridge = bridge

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take the signals, and give them back afterwards: ending on one is success, not a signal to raise again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let answers end, fail those that don't."""
        waiting = self.bridge.in_flight
        print(f"Stopping: {waiting} in flight, {GRACE_SECONDS:.0f} s to finish." if waiting else "Stopped.", flush=True)
        error = EngineDiedError("the server was stopped while the request was in flight")
        failing = asyncio.get_running_loop().call_later(GRACE_SECONDS, self.bridge.fail_all, error)
        await super().shutdown(sockets)
        failing.cancel()


def with_embedded_adapter(config: ServeConfig) -> ServeConfig:
    """`config` with the adapter that belongs to its model, which then answers, unless it names adapters, or none."""
    found = None if config.adapter else embedded_adapter(config.model)
    if found is None:
        return config
    name, folder = found
    return config.update(adapter=(f"{name}={folder}",), default_adapter=name)


def run_server(config: ServeConfig, *, engine_command: Sequence[str] = ENGINE_COMMAND) -> None:
    """Serve until SIGINT or SIGTERM. Prints the chat page's address once tokens can move.

    Raises `DeepSeekError` where the server can't start: port in use, unknown model, broken checkpoint or adapter, no
    memory. `engine_command` starts the engine process.
    """
    began = time.monotonic()
    config = with_embedded_adapter(config)
    checked_adapters(config.adapters, served_name(config.model))
    listener = listen(config.host, config.port)
    try:
        path = locate_model(config.model)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, listener, path, engine_command, began))
    except KeyboardInterrupt:  # before the server took over the signals
        print("Stopped.", flush=True)
    finally:
        listener.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not on this platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(
    config: ServeConfig, listener: socket.socket, path: Path, engine_command: Sequence[str], began: float
) -> None:
    model_id = served_name(config.model)
    metrics = ServerMetrics(model_id)
    bridge = Bridge(metrics, max_concurrent=config.max_concurrent, max_queue=config.queue_limit)
    service = Service(
        model_id,
        bridge,
        metrics,
        stream_interval=config.stream_interval,
        adapters=config.adapters,
        default_adapter=config.default_adapter,
    )
    settings = EngineSettings(
        address="",
        model_path=str(path),
        precision=config.precision,
        memory_bytes=config.memory,
        max_concurrent=config.max_concurrent,
        parent_pid=os.getpid(),
        speculative=config.speculative,
        adapters=config.adapters,
    )
    supervisor = Supervisor(settings, bridge, engine_command)
    bridge.attach(supervisor)
    supervisor.start()  # first of all: it takes longest
    server = Server(uvicorn_config(config, service, listener), bridge)

    async def start() -> None:
        try:
            tokenizer = await asyncio.to_thread(load_tokenizer, path)
            supervisor.give_hello(service.set_tokenizer(tokenizer))
            ready = await supervisor.wait_ready()
        except BaseException:
            server.should_exit = True
            raise
        seconds = time.monotonic() - began
        first = "" if config.default_adapter is None else f"{config.default_adapter} over "
        print(f"Serving {first}{model_id} ({ready.precision}), ready in {seconds:.1f} s", flush=True)
        print(f"Chat page: {page_url(listener)}", flush=True)

    if not middleware.is_loopback(listener.getsockname()[0]) and config.api_key is None:
        log.warning("anyone who can reach this machine can use this server: set --api-key")
    starting = asyncio.create_task(start())
    pinging = asyncio.create_task(bridge.ping_forever())
    try:
        await server.serve(sockets=[listener])
        if starting.done():
            starting.result()
    finally:
        for task in (starting, pinging):
            task.cancel()
        await asyncio.gather(starting, pinging, return_exceptions=True)
        await supervisor.close()
        service.close()


def uvicorn_config(config: ServeConfig, service: Service, listener: socket.socket) -> uvicorn.Config:
    """How uvicorn runs the app on a bound socket."""
    digest = None if config.api_key is None else hashlib.sha256(config.api_key.strip().encode()).digest()
    app = create_app(
        service,
        api_key_digest=digest,
        allowed_hosts=allowed_hosts(listener.getsockname()[0]),
        max_body_bytes=config.max_body_bytes,
    )
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 3,
    )
