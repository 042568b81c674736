"""Hugging Face transformers on the CPU: one `generate` for all prompts, which are of one length and need no padding."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Peer:
    """A folder or a GGUF file, which is dequantised. Flags: `dtype` (bfloat16, float32)."""

    def __init__(self, model: str, threads: int, flags: dict[str, str]) -> None:
        self._torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        self._torch.set_num_threads(threads)
        dtype = flags.get("dtype", "bfloat16")
        arguments: dict[str, Any] = {"dtype": getattr(self._torch, dtype), "local_files_only": True}
        path = Path(model)
        folder = path
        if path.suffix == ".gguf":
            folder, arguments["gguf_file"] = path.parent, path.name
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self.about = {
            "versions": {name: version(name) for name in ("transformers", "torch")},
            "flags": {"dtype": dtype, "attention": self._model.config._attn_implementation},
            "threads": threads,
        }

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing to make ready."""

    def run(self, prompts: list[list[int]], new_tokens: int, arrived: Callable[[int, list[int]], None]) -> None:
        """Generate greedily; the stopping criterion, which never stops anything, sees each token as it comes."""
        torch = self._torch
        ids = torch.tensor(prompts)

        def look(input_ids: Any, scores: Any, **more: Any) -> Any:
            for index, token in enumerate(input_ids[:, -1].tolist()):
                arrived(index, [token])
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                stopping_criteria=[look],
            )
