"""A worker's process as the driver sees it: started, asked one thing at a time, stopped outside its turns."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.operate.compare.peers import Peer

LOOP = Path(__file__).with_name("workers") / "worker_loop.py"
LOAD_SECONDS, RUN_SECONDS, STOP_SECONDS = 900.0, 600.0, 10.0
"""How long a worker may take: some compile the model when they load it."""

_MAX_ANSWER = 64 << 20
_LAST_LINES = 6


class WorkerError(DeepSeekError):
    """A worker that failed, died, or did not answer in time."""


class Worker:
    """One peer's process. Its own session, so that all of it can be stopped (SIGSTOP), resumed and killed together."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.started = time.perf_counter()
        self._errors = tempfile.TemporaryFile()
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                [str(peer.python), str(LOOP), peer.worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{peer.label}: {peer.python} can't be started: {error.strerror}") from None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self, threads: int) -> dict[str, Any]:
        """Load the model; what the worker says about itself (versions, flags, threads). Raises `WorkerError`."""
        request = {"do": "load", "model": self.peer.model, "threads": threads, "flags": self.peer.flags}
        return self._ask(request, LOAD_SECONDS)

    def run(self, prompts: list[list[int]], new_tokens: int, *, warm: bool = True) -> dict[str, Any]:
        """Run prompts together: `tokens` and their arrival in `seconds`, a list of each per prompt.

        `warm` lets the worker make an untimed step first. Raises `WorkerError`, also when a prompt got
        another number of tokens than asked for.
        """
        answer = self._ask({"do": "run", "prompts": prompts, "new_tokens": new_tokens, "warm": warm}, RUN_SECONDS)
        for name in ("tokens", "seconds"):
            counts = [len(each) for each in answer[name]]
            if counts != [new_tokens] * len(prompts):
                raise WorkerError(f"{self.peer.label}: {new_tokens} tokens were asked for, and {counts} came")
        return answer

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the worker run inside the block only."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process, politely first."""
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            with contextlib.suppress(DeepSeekError):
                self._ask({"do": "stop"}, STOP_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line(time.monotonic() + seconds, request["do"]))
        except (BrokenPipeError, ValueError):
            raise self._failed(f"ended while it should {request['do']}") from None
        if "error" in answer:
            raise self._failed(f"can't {request['do']}: {answer['error']}")
        result: dict[str, Any] = answer["ok"]
        return result

    def _line(self, deadline: float, what: str) -> bytes:
        """The next line of the worker's answers, b"" at their end."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise self._failed(f"did not {what} in time")
            part = os.read(pipe, 1 << 20)
            if not part:
                return b""
            self._buffer += part
            if len(self._buffer) > _MAX_ANSWER:
                raise self._failed("answers without end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _failed(self, problem: str) -> WorkerError:
        """The error, with what the worker printed last."""
        self._errors.seek(0)
        lines = self._errors.read()[-20_000:].decode("utf-8", "replace").strip().splitlines()[-_LAST_LINES:]
        return WorkerError(
            f"{self.peer.label} {problem}", remedy="it printed last: " + " | ".join(lines) if lines else ""
        )
