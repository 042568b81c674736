"""Starts the engine process, watches it, and starts it again when it dies. Leaves no process and no folder behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from deepseek_r1.core.errors import ConfigError, DeepSeekError, EngineDiedError
from deepseek_r1.serve.messages import EngineSettings, Failed, FromEngine, Hello, Ready, ToEngine, encode, from_engine

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-P", "-m", "deepseek_r1.serve.engine_process")
FIRST_BACKOFF = 0.1
LAST_BACKOFF = 5.0
STEADY_SECONDS = 10.0
"""An engine that was ready for this long has earned a quick restart."""
FIRST_STARTS = 3
"""Attempts at the first start before the server gives up: nobody waits for a server that never was ready."""
TERM_SECONDS = 3.0
MAX_SOCKET_PATH = 100
"""Bytes of a socket's path that every Unix takes (Linux 107, others fewer)."""


class Listener(Protocol):
    """Who is told of the engine's life and messages (the bridge)."""

    def on_ready(self, ready: Ready) -> None:
        """Tokens can move."""

    def on_message(self, message: FromEngine) -> None:
        """Anything after `Ready`."""

    def on_down(self, reason: str) -> None:
        """The engine is gone; requests in flight are lost to it."""


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The engine's environment: ours without the API key, with few malloc arenas (each keeps freed memory)."""
    child = {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1", **environment}
    child.pop("DEEPSEEK_R1_API_KEY", None)
    return child


def make_socket_folder() -> Path:
    """A fresh folder that only this user can enter, with a path short enough for a socket in it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    candidates = [runtime] if runtime and os.access(runtime, os.W_OK | os.X_OK) else []
    for parent in [*candidates, tempfile.gettempdir(), "/tmp"]:
        if len(os.fsencode(parent)) + len("/deepseek-r1-12345678/engine") > MAX_SOCKET_PATH:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="deepseek-r1-", dir=parent))  # mode 0700
        except OSError as error:
            log.warning("no folder for the engine's socket in %s: %s", parent, error.strerror)
    raise ConfigError("no folder for the engine's socket", remedy="set TMPDIR to a writable folder with a short path")


class Supervisor:
    """Owns the engine process and the socket to it.

    `command` is what is run (tests put a scripted engine there); `settings.address` is filled in per start.
    `give_hello` supplies the token table as soon as it is built: the engine loads its weights meanwhile.
    """

    def __init__(self, settings: EngineSettings, listener: Listener, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self.settings = settings
        self.listener = listener
        self.command = list(command)
        self.restarts = 0
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._first_ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._socket: zmq.asyncio.Socket | None = None
        self._up = False
        self._failed: Failed | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the engine process and its watch."""
        self._task = asyncio.create_task(self._watch(), name="engine-watch")

    def give_hello(self, hello: Hello) -> None:
        """Hand over the token table; it is kept for restarts."""
        self._hello.set_result(hello)

    async def wait_ready(self) -> Ready:
        """Wait for the first `Ready`. Raises `DeepSeekError` where the engine can't start."""
        return await asyncio.shield(self._first_ready)

    def send(self, message: ToEngine) -> None:
        """Send a message to the engine. Raises `EngineDiedError` while there is none that is ready."""
        if self._socket is None or not self._up:
            raise EngineDiedError("the engine is not ready", remedy="it is being started: try again shortly")
        self._socket.send(encode(message))

    async def close(self) -> None:
        """End the engine process and remove its folder."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _watch(self) -> None:
        try:
            await self._keep_alive()
        except asyncio.CancelledError:
            raise
        except DeepSeekError as error:
            self._give_up(error)
        except OSError as error:
            self._give_up(DeepSeekError(f"the engine process can't be started: {error}"))
        except Exception as error:
            log.exception("the engine's watch failed")
            self._give_up(DeepSeekError(f"the engine's watch failed: {type(error).__name__}"))

    def _give_up(self, error: DeepSeekError) -> None:
        if not self._first_ready.done():
            self._first_ready.set_exception(error)

    async def _keep_alive(self) -> None:
        backoff = FIRST_BACKOFF
        attempts = 0
        while True:
            attempts += 1
            began = time.monotonic()
            try:
                reason = ending(await self._one_life())
            except (DeepSeekError, OSError) as error:
                if not self._first_ready.done():
                    raise
                reason = f"can't be started: {error}"
            if self._failed is not None:
                reason = f"failed: {self._failed.message}"
            if not self._first_ready.done():
                if self._failed is not None and self._failed.final:
                    raise DeepSeekError(self._failed.message, remedy=self._failed.remedy)
                if attempts >= FIRST_STARTS:
                    raise EngineDiedError(f"the engine {reason}, {attempts} times while starting")
            if time.monotonic() - began > STEADY_SECONDS:
                backoff = FIRST_BACKOFF
            log.error("the engine %s; starting it again in %.1f s", reason, backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
            self.restarts += 1

    async def _one_life(self) -> int:
        """Run the engine process once, to its end; its exit code (negative: the signal that ended it)."""
        self._failed = None
        folder = make_socket_folder()
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PAIR)
        # The engine finds its settings in the pipe however early we end, and the pipe's end tells it that we have.
        settings_pipe, our_end = os.pipe()
        process: asyncio.subprocess.Process | None = None
        receiver: asyncio.Task[None] | None = None
        try:
            socket.linger = 0
            socket.sndhwm = 0  # the bridge bounds what is in flight; a full queue must not hold back a Cancel
            address = f"ipc://{folder}/engine"
            socket.bind(address)
            os.write(our_end, msgspec.json.encode(msgspec.structs.replace(self.settings, address=address)) + b"\n")
            process = await asyncio.create_subprocess_exec(*self.command, stdin=settings_pipe, env=child_environment())
            self._socket = socket
            receiver = asyncio.create_task(self._receive(socket), name="engine-receive")
            exited = asyncio.create_task(process.wait(), name="engine-exit")
            await asyncio.wait({receiver, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done() and not receiver.done():
                await asyncio.wait({receiver}, timeout=0.2)  # a last `Failed` may still be on its way
            if receiver.done() and not receiver.cancelled() and (error := receiver.exception()) is not None:
                log.error("a message of the engine can't be handled", exc_info=error)
            await end_process(process)
            return process.returncode or 0
        finally:
            self._socket = None
            if self._up:
                self._up = False
                self.listener.on_down("the engine process ended while the request was in flight")
            if receiver is not None:
                receiver.cancel()
            socket.close()
            context.term()
            os.close(settings_pipe)
            if process is not None:
                await asyncio.shield(end_process(process))
            os.close(our_end)
            shutil.rmtree(folder, ignore_errors=True)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        """Pass on messages until the engine says that it failed."""
        hello = asyncio.create_task(self._greet(socket))
        try:
            while True:
                message = from_engine.decode(await socket.recv())
                match message:
                    case Ready():
                        self._up = True
                        self.listener.on_ready(message)
                        if not self._first_ready.done():
                            self._first_ready.set_result(message)
                    case Failed():
                        self._failed = message
                        return
                    case _:
                        self.listener.on_message(message)
        finally:
            hello.cancel()

    async def _greet(self, socket: zmq.asyncio.Socket) -> None:
        await socket.send(encode(await asyncio.shield(self._hello)))


async def end_process(process: asyncio.subprocess.Process) -> None:
    """End a process in order (SIGTERM), then by force; returns when it is gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(TERM_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def ending(code: int) -> str:
    """Words for an exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -9 else ""
    return f"was ended by signal {-code}{hint}"
