"""From a decoder to a Hugging Face directory that transformers and this package load."""

from __future__ import annotations

import errno
import json
import os
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepseek_r1.core.errors import CapacityError
from deepseek_r1.models.checkpoint.safetensors import write_safetensors
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.models.shapes import parameter_shapes
from deepseek_r1.models.text.load import load_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def save_model(
    decoder: Decoder, directory: str | PathLike[str], *, tokenizer_from: str | PathLike[str] | None = None
) -> Path:
    """Write model.safetensors and config.json; with `tokenizer_from`, a directory or a GGUF file, its tokenizer too.

    Each file appears only when all of it is on disk, config.json last. Returns the directory.

    Raises `ValueError` for a decoder that was packed for inference, `CapacityError` when the disk is full.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    family: Family = FAMILIES.load(decoder.config.family)
    tensors = stored_tensors(decoder, family)
    arrays = {name: _array(tensor) for name, tensor in tensors.items()}
    halves = [name for name, tensor in tensors.items() if tensor.dtype is torch.bfloat16]
    write_safetensors(directory / "model.safetensors", arrays, bf16_names=halves, metadata={"format": "pt"})
    if tokenizer_from is not None:
        _take_tokenizer(Path(tokenizer_from), directory)
    dtype = "bfloat16" if decoder.embedding.weight.dtype is torch.bfloat16 else "float32"
    _write_json(directory / "config.json", family.to_hf(decoder.config) | {"dtype": dtype})
    return directory


def stored_tensors(decoder: Decoder, family: Family) -> dict[str, Tensor]:
    """The decoder's weights under the names and in the layout of its family's Hugging Face files."""
    config = decoder.config
    have = dict(decoder.named_parameters())
    out: dict[str, Tensor] = {}
    for weight in family.weights("safetensors", config, parameter_shapes(config)):
        if any(name not in have for name in weight.ours):
            raise ValueError(f"{weight.ours[0]} is packed for inference: load the model with pack=False to save it")
        parts = [have[name].detach() for name in weight.ours]
        if "{e}" in weight.stored:
            out |= dict(zip(weight.names(len(parts[0])), parts[0], strict=True))
        else:
            out[weight.stored] = weight.form.join(parts, config)
    return out


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    if tensor.dtype is torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return bits
    return tensor.numpy()


def _take_tokenizer(source: Path, directory: Path) -> None:
    if source.suffix == ".safetensors":
        source = source.parent
    if source.is_dir() and (source / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
    elif source.suffix == ".gguf" or any(source.glob("*.gguf")):
        for name, text in load_tokenizer(source).files().items():
            _write_text(directory / name, text)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _write_text(path, json.dumps(fields, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"{path}: the disk is full", remedy="free space") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
