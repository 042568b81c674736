"""A tiny llama whose tokens are bytes (and some that no text makes), under a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from support import tiny

PLAIN = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
OPENS = PLAIN + "<think>\n"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The letters that stand for bytes, in the order of their token ids."""


def byte_model(models_folder: Path, template: str | None = PLAIN) -> Path:
    """The model's folder, written once for each of `PLAIN`, `OPENS` and None."""
    folder = models_folder / f"bytes-{'base' if template is None else len(template)}"
    if not folder.exists():
        shutil.copytree(tiny.save("llama", models_folder), folder)
        texts = [*ALPHABET, *(f"~{i}~" for i in range(tiny.SHAPE["vocab_size"] - 256))]
        tokenizer = Tokenizer(BPE({text: place for place, text in enumerate(texts)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder
