"""The loop of every worker: `python worker_loop.py PEER_MODULE`, one JSON object a line on stdin, one answer a line.

Run inside the peer's environment, so the standard library is all it needs. Requests are {"do": "load", "model": …,
"threads": …, "flags": {…}}, {"do": "run", "prompts": [[ids]], "new_tokens": n, "warm": …} and {"do": "stop"}; answers
are {"ok": {…}} or {"error": "…"}. A peer's module has a class `Peer(model, threads, flags)` with a dictionary
`about` and the methods `prepare(prompts, new_tokens)`, which isn't timed, and `run(prompts, new_tokens, arrived)`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from typing import Any, BinaryIO

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Arrivals:
    """Token ids as they arrive and when (seconds since the start of the run): one list of each per prompt."""

    def __init__(self, prompts: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(prompts)]
        self.seconds: list[list[float]] = [[] for _ in range(prompts)]
        self._started = time.perf_counter()

    def __call__(self, index: int, tokens: list[int]) -> None:
        """Note that `tokens` of prompt `index` are here."""
        now = time.perf_counter() - self._started
        self.tokens[index] += tokens
        self.seconds[index] += [now] * len(tokens)


def serve(module: str, lines: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until "stop" or the end of the input."""
    peer: Any = None
    for line in lines:
        try:
            request = json.loads(line)
            if request["do"] == "stop":
                return _answer(answers, {"ok": {}})
            if request["do"] == "load":
                peer = importlib.import_module(module).Peer(request["model"], request["threads"], request["flags"])
                result = peer.about
            else:
                result = _run(peer, request["prompts"], request["new_tokens"], request["warm"])
            _answer(answers, {"ok": result})
        except Exception as error:  # whatever a peer raises belongs into the report, by its name
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})


def _run(peer: Any, prompts: list[list[int]], new_tokens: int, warm: bool) -> dict[str, Any]:
    peer.prepare(prompts, new_tokens)
    if warm:
        # Untimed: threads that slept through the other engines' turns wake up. Reversed, so that no prefix is cached.
        peer.run([ids[::-1][:8] for ids in prompts], 2, Arrivals(len(prompts)))
    arrived = Arrivals(len(prompts))
    peer.run(prompts, new_tokens, arrived)
    return {"tokens": arrived.tokens, "seconds": arrived.seconds}


def _answer(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def main() -> None:
    """Keep the answers' pipe for the answers alone: what the peer prints goes to stderr."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
