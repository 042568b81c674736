"""OpenVINO GenAI's continuous batching pipeline, stepped by hand so that each token's time is known."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

CACHE_GIB = 1
MAX_STEP_TOKENS = 2048


class Peer:
    """A folder with OpenVINO's own model files. Flags: `kv` (u8, f16, bf16; what the plugin chooses by default)."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        self._genai: Any = importlib.import_module("openvino_genai")
        self._openvino: Any = importlib.import_module("openvino")
        self._numpy: Any = importlib.import_module("numpy")
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_batched_tokens = MAX_STEP_TOKENS
        scheduler.max_num_seqs = 32
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if "kv" in flags:
            properties["KV_CACHE_PRECISION"] = flags["kv"]
        self._pipeline = self._genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._next = 0
        self.about = {
            "versions": {name: version(name) for name in ("openvino", "openvino-genai")},
            "flags": {
                "pipeline": "ContinuousBatchingPipeline",
                "max_num_batched_tokens": MAX_STEP_TOKENS,
                "cache_gib": CACHE_GIB,
                "prefix_caching": False,
                **properties,
            },
            "threads": threads,
        }

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing to make ready."""

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Add all prompts, then step until none is left."""
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = new_tokens
        settings.ignore_eos = True
        settings.do_sample = False
        handles = []
        for ids in prompts:
            tensor = self._openvino.Tensor(self._numpy.array([ids], self._numpy.int64))
            handles.append(self._pipeline.add_request(self._next, tensor, settings))
            self._next += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            self._read(handles, arrived)
        self._read(handles, arrived)

    def _read(self, handles: list[Any], arrived: Callable[[int, list[int]], None]) -> None:
        for index, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    arrived(index, list(output.generated_ids))
