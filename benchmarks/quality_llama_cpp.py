"""llama.cpp's logits of every position: `quality.py` starts this in that peer's environment, by the worker loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy
from peer_llama_cpp import Peer as LlamaCpp  # beside the worker loop, which is what runs this


class Peer(LlamaCpp):
    """A GGUF model. Flags: those of the speed worker, and `logits`, an .npy file (positions, vocabulary) to fill."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        super().__init__(model, threads, flags)
        self._logits = numpy.load(flags["logits"], mmap_mode="r+")

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Decode one prompt in one call and write its logits; the likeliest next token arrives."""
        (ids,), api, batch = prompts, self._api, self._batch
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = 1
        status = api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        shape = (len(ids), self._vocab_size)
        self._logits[: len(ids)] = numpy.ctypeslib.as_array(api.llama_get_logits(self._context), shape=shape)
        arrived(0, [self._likeliest(len(ids) - 1)])
