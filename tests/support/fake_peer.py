"""A peer for tests of the comparison: tokens that can be computed by hand, at a pace that is known.

Loaded by name inside a worker's process; flags say how it misbehaves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def token(prompt: list[int], step: int) -> int:
    """What the fake says at a step."""
    return (sum(prompt) + 7 * step) % 1000


class Peer:
    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        if flags.get("fail") == "load":
            print("the file is not mine", flush=True)
            raise OSError(f"no model at {model}")
        self.flags = flags
        self.about = {"versions": {"fake": "1.2"}, "flags": flags, "threads": threads, "model": model}
        self.calls = 0

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        print("noise that is no answer")

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        self.calls += 1
        if log := self.flags.get("log"):
            with Path(log).open("a") as file:
                file.write(f"{self.flags['name']} {len(prompts)} {len(prompts[0])} {new_tokens} {prompts[0][0]}\n")
        match self.flags.get("fail"):
            case "run":
                raise ValueError("no such kernel")
            case "later" if self.calls > 4:
                raise ValueError("worn out")
            case "die":
                os._exit(3)
            case "hang":
                time.sleep(60)
            case "short":
                new_tokens -= 1
        for step in range(new_tokens):
            time.sleep(float(self.flags.get("pace", "0")))
            for index, prompt in enumerate(prompts):
                arrived(index, [token(prompt, step)])
