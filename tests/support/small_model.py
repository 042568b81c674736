"""A tiny model that can be talked to: random weights, the small tokenizer, a chat template."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from support import tiny
from support.small_text import CHATML, small_backend


@cache
def _written(folder: str) -> Path:
    path = Path(folder) / "small-model"
    backend = small_backend()
    end = backend.token_to_id("<|im_end|>")
    shape = tiny.SHAPE | {"vocab_size": backend.get_vocab_size(), "max_position_embeddings": 2048}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, bos_token_id=None, eos_token_id=end)).float()
    model.save_pretrained(path)
    backend.save(str(path / "tokenizer.json"))
    template = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    fields = {"chat_template": template, "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return path


def small_model(folder: Path) -> Path:
    """The model's directory below `folder`, written once."""
    return _written(str(folder))


def write_chats(path: Path, count: int = 40) -> Path:
    """Conversations whose answers follow from their questions."""
    rows = []
    for number in range(count):
        left, right = number % 9 + 1, number // 9 + 1
        messages = [
            {"role": "user", "content": f"{left}+{right}"},
            {"role": "assistant", "content": f"<think>\n{left}+{right}={left + right}\n</think>\n{left + right}"},
        ]
        rows.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(rows) + "\n")
    return path
