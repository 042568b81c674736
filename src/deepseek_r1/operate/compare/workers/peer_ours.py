"""Our own engine as a worker like the others: in its own process, token ids in and out, no text and no server."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version


class Peer:
    """Whatever `deepseek-r1` can load. Flags: `precision`, `memory` (bytes), `max_step_tokens`, `speculative`."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        from deepseek_r1.config.speculation import parse_speculation
        from deepseek_r1.core.version import __version__
        from deepseek_r1.engine import memory
        from deepseek_r1.engine.build import load_engine
        from deepseek_r1.models.locate import locate_model

        # After the package, which settles how torch's threads wait.
        importlib.import_module("torch").set_num_threads(threads)
        speculative = parse_speculation(flags.get("speculative", "off"))
        step_tokens = int(flags.get("max_step_tokens", memory.MAX_STEP_TOKENS))
        self._engine = load_engine(
            locate_model(model),
            precision=flags.get("precision", "fp32"),
            memory_bytes=int(flags["memory"]) if "memory" in flags else None,
            max_concurrent=32,
            max_step_tokens=step_tokens,
            speculative=speculative,
        )
        self._next = 0
        self.about = {
            "versions": {"deepseek_r1": __version__, "torch": version("torch")},
            "flags": {
                "precision": self._engine.precision,
                "path": self._engine.path,
                "max_step_tokens": step_tokens,
                "speculative": speculative,
                "prefix_caching": "on, but every prompt is new",
            },
            "threads": threads,
        }

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing to make ready."""

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Submit all prompts, then step until none is left."""
        from deepseek_r1.engine.request import GenerateRequest, SamplingParams

        sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        places = {}
        for index, ids in enumerate(prompts):
            places[str(self._next)] = index
            self._engine.submit(GenerateRequest(str(self._next), ids, sampling))
            self._next += 1
        while self._engine.has_work:
            for output in self._engine.step():
                arrived(places[output.request_id], output.token_ids)
