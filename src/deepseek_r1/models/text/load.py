"""The one door to tokenizers: from a GGUF file or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.text.gguf_tokenizer import tokenizer_from_gguf
from deepseek_r1.models.text.hf_tokenizer import tokenizer_from_directory
from deepseek_r1.models.text.tokenizer import Tokenizer


def load_tokenizer(checkpoint_path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a directory with tokenizer.json, a file in one, or a GGUF file.

    A directory without tokenizer.json may hold one GGUF file. Raises what `open_checkpoint`, `tokenizer_from_gguf` and
    `tokenizer_from_directory` raise.
    """
    path = Path(checkpoint_path)
    directory = path if path.is_dir() else path.parent
    names_weights = path.is_dir() or path.suffix in (".safetensors", ".json")
    if names_weights and ((directory / "tokenizer.json").exists() or not any(directory.glob("*.gguf"))):
        return tokenizer_from_directory(directory)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.format != "gguf":
            raise CheckpointError(
                directory / "tokenizer.json", "file", "is missing", remedy="put the model's tokenizer.json beside it"
            )
        return tokenizer_from_gguf(checkpoint.metadata, checkpoint.path)
