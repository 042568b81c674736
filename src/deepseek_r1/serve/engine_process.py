"""The engine process: reads its settings, loads the engine, then steps it and talks to the API process.

Started by `serve.supervisor` as `python -m deepseek_r1.serve.engine_process`. It ends when its standard input does:
that is the sign that its parent is gone, however the parent ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from deepseek_r1.core.errors import CapacityError, DeepSeekError, RequestError
from deepseek_r1.engine.request import EngineStats, ExpertLoad, GenerateRequest, TokenOutput
from deepseek_r1.serve.messages import (
    Cancel,
    EngineSettings,
    Failed,
    Hello,
    Outputs,
    Ping,
    Pong,
    Ready,
    Refused,
    encode,
    to_engine,
)


class EngineLike(Protocol):
    """What the loop needs of an engine (`deepseek_r1.engine` has the real one, tests have a scripted one)."""

    max_model_len: int
    kv_blocks: int
    block_size: int
    weights_bytes: int
    kv_bytes: int
    vocab_size: int
    precision: str
    path: str

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""

    @property
    def stats(self) -> EngineStats:
        """State after the last step."""

    @property
    def expert_load(self) -> list[ExpertLoad]:
        """How evenly each layer's experts were used."""

    def set_vocabulary(self, token_bytes: list[bytes], eos_token_ids: tuple[int, ...]) -> None:
        """Take the table token id -> bytes."""

    def submit(self, request: GenerateRequest) -> None:
        """Queue one choice; raises `RequestError` or `CapacityError`."""

    def cancel(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids are ignored."""

    def step(self) -> list[TokenOutput]:
        """Compute one batch."""


Loader = Callable[[EngineSettings], EngineLike]
Socket = zmq.Socket[bytes]


def run_loop(engine: EngineLike, socket: Socket) -> None:
    """Take what has arrived, step, send what came out; wait for messages while there is nothing to compute."""
    while True:
        timeout = 0 if engine.has_work else None
        while socket.poll(timeout):
            receive(engine, socket)
            timeout = 0
        if engine.has_work:
            outputs = engine.step()
            socket.send(encode(Outputs(outputs, engine.stats)))


def receive(engine: EngineLike, socket: Socket) -> None:
    """Act on one message. A request that the engine can't take is answered by `Refused`."""
    message = to_engine.decode(socket.recv())
    match message:
        case GenerateRequest():
            try:
                engine.submit(message)
            except RequestError as error:
                refused = Refused(message.request_id, str(error), error.code or "invalid_value", error.param)
                socket.send(encode(refused))
            except CapacityError as error:
                socket.send(encode(Refused(message.request_id, str(error), "no_capacity")))
        case Cancel():
            engine.cancel(message.request_ids)
            if not engine.has_work:  # no step will report the freed blocks
                socket.send(encode(Outputs([], engine.stats)))
        case Ping():
            socket.send(encode(Pong(message.sent_at, engine.expert_load)))
        case Hello():
            engine.set_vocabulary(message.token_bytes, message.eos_token_ids)


def serve(settings: EngineSettings, socket: Socket, load: Loader) -> int:
    """Load the engine, greet the API process, run until the process is ended. Returns the exit code of a failure."""
    started = time.monotonic()
    try:
        engine = load(settings)
    except DeepSeekError as error:
        socket.send(encode(Failed(error.message, error.remedy, final=True)))
        return error.exit_code
    except MemoryError:
        remedy = "use a smaller model or precision, or raise --memory"
        socket.send(encode(Failed(f"not enough memory to load {settings.model_path}", remedy, final=True)))
        return 1
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__} while loading {settings.model_path}: {error}"
        socket.send(encode(Failed(message, "this is a defect: please report the traceback above", final=True)))
        return 1
    load_seconds = time.monotonic() - started
    try:
        receive(engine, socket)  # Hello
        socket.send(encode(ready_message(engine, load_seconds)))
        run_loop(engine, socket)
    except DeepSeekError as error:
        socket.send(encode(Failed(error.message, error.remedy, final=False)))
    except Exception as error:
        # The place, not the message: an exception's message may quote a prompt.
        print(f"engine: {type(error).__name__}", *traceback.format_tb(error.__traceback__), sep="\n", file=sys.stderr)
        socket.send(encode(Failed(f"{type(error).__name__} in the engine", "its log says where", final=False)))
    return 1


def ready_message(engine: EngineLike, load_seconds: float) -> Ready:
    """What the API process is told of the loaded engine."""
    return Ready(
        pid=os.getpid(),
        max_model_len=engine.max_model_len,
        kv_blocks=engine.kv_blocks,
        block_size=engine.block_size,
        weights_bytes=engine.weights_bytes,
        kv_bytes=engine.kv_bytes,
        load_seconds=load_seconds,
        vocab_size=engine.vocab_size,
        precision=engine.precision,
        path=engine.path,
    )


def load_real_engine(settings: EngineSettings) -> EngineLike:
    """The engine of this package; the import brings torch, and happens in this process alone."""
    from deepseek_r1.engine.build import load_engine

    return load_engine(
        settings.model_path,
        precision=settings.precision,
        memory_bytes=settings.memory_bytes,
        max_concurrent=settings.max_concurrent,
        speculative=settings.speculative,
        companion_pid=settings.parent_pid,  # its memory counts against the same budget
        adapters=settings.adapters,
    )


def end_with_parent(settings: EngineSettings) -> None:
    """Start the thread that waits for the end of standard input, then leaves nothing of us behind."""
    folder = Path(settings.address.removeprefix("ipc://")).parent

    def wait() -> None:
        while os.read(0, 4096):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def main(load: Loader = load_real_engine) -> int:
    """Run the engine process to its end."""
    # Ctrl-C reaches every process of the terminal: the API process takes it, and ends us by SIGTERM. That keeps
    # its default: nothing here needs an orderly end, and an exception raised by a handler could come anywhere.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 0  # the parent was gone before it had said anything
    settings = msgspec.json.decode(line, type=EngineSettings)
    end_with_parent(settings)
    context: zmq.Context[Socket] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.linger = 1000  # milliseconds, for a last `Failed`
    try:
        socket.connect(settings.address)
        return serve(settings, socket, load)
    finally:
        socket.close()
        context.term()


if __name__ == "__main__":
    sys.exit(main())
