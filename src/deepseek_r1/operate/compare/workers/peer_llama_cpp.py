"""llama.cpp through the low-level functions of llama-cpp-python: one `llama_decode` a step for all sequences."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

BATCH, UBATCH = 2048, 512
_ROOM = 64
"""Cells of the cache beside prompt and answer, for the padding to whole blocks."""


class Peer:
    """A GGUF model. Flags: `flash_attention` (auto, on, off). Keys and values are f16, as by default."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        self._api: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._numpy: Any = importlib.import_module("numpy")
        api = self._api
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {model}")
        vocabulary = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(vocabulary)
        self._threads = threads
        choices = {
            "auto": api.LLAMA_FLASH_ATTN_TYPE_AUTO,
            "on": api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
            "off": api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        }
        flash = flags.get("flash_attention", "auto")
        self._flash = choices[flash]
        self._contexts: dict[tuple[int, int], Any] = {}
        self._context: Any = None
        self._batch = api.llama_batch_init(BATCH, 0, 1)
        self.about = {
            "versions": {"llama-cpp-python": version("llama-cpp-python")},
            "flags": {"flash_attention": flash, "n_ubatch": UBATCH, "n_batch": BATCH, "kv": "f16", "kv_unified": False},
            "threads": threads,
            "system": api.llama_print_system_info().decode(),
        }

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """A context for so many sequences of this length: kept, so that its pages are touched once."""
        api = self._api
        length = max(map(len, prompts)) + new_tokens + _ROOM
        shape = (len(prompts), -(-length // 256) * 256)
        if shape not in self._contexts:
            params = api.llama_context_default_params()
            params.n_ctx = shape[0] * shape[1]
            params.n_batch = BATCH
            params.n_ubatch = UBATCH
            params.n_seq_max = shape[0]
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type = self._flash
            params.kv_unified = False
            context = api.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError(f"llama.cpp can't make a context of {params.n_ctx} tokens")
            self._contexts[shape] = context
        self._context = self._contexts[shape]

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Decode all prompts together, the likeliest token each."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        chosen = self._decode([(token, at, index) for index, ids in enumerate(prompts) for at, token in enumerate(ids)])
        for step in range(new_tokens):
            for index, token in enumerate(chosen):
                arrived(index, [token])
            if step + 1 < new_tokens:
                chosen = self._decode(
                    [(token, len(prompts[index]) + step, index) for index, token in enumerate(chosen)]
                )

    def _decode(self, entries: list[tuple[int, int, int]]) -> list[int]:
        """Compute (token, position, sequence) entries and return the likeliest next token of each sequence."""
        batch, last = self._batch, {}
        batch.n_tokens = len(entries)
        for place, (token, position, sequence) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = 0
            last[sequence] = place
        for place in last.values():
            batch.logits[place] = 1
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._likeliest(last[sequence]) for sequence in sorted(last)]

    def _likeliest(self, place: int) -> int:
        pointer = self._api.llama_get_logits_ith(self._context, place)
        return int(self._numpy.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).argmax())
