"""The one door to checkpoints on disk: which reader a path needs."""

from __future__ import annotations

import os
from pathlib import Path

from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError, UnsupportedError
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.gguf import MAGIC, open_gguf
from deepseek_r1.models.checkpoint.mapped import MappedFile
from deepseek_r1.models.checkpoint.safetensors import INDEX_NAME, open_safetensors, open_sharded

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a *.gguf or *.safetensors file, a *.safetensors.index.json, or a directory that holds one checkpoint.

    In a directory, sharded safetensors go before model.safetensors, then a single *.safetensors, then a single *.gguf.
    Raises `ModelNotFoundError` if nothing is there, `CheckpointError` for a broken, hostile or ambiguous checkpoint,
    and `UnsupportedError` for pickle files, which are never loaded.
    """
    path = Path(path)
    return _open_directory(path) if path.is_dir() else _open_file(path)


def _open_directory(path: Path) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError(path, "directory", f"cannot be listed: {error}", remedy="check permissions") from error
    if INDEX_NAME in names:
        return open_sharded(path / INDEX_NAME)
    if "model.safetensors" in names:
        return open_safetensors(path / "model.safetensors")
    for suffix in (".safetensors", ".gguf"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) > 1:
            raise CheckpointError(
                path, "directory", f"holds several checkpoints: {', '.join(found[:8])}", remedy="name one of the files"
            )
        if found:
            return _open_file(path / found[0])
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise _pickle_error(path / name)
    raise ModelNotFoundError(
        f"{path} holds no checkpoint", remedy="name a directory with *.safetensors and config.json, or a .gguf file"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(".safetensors.index.json"):
        return open_sharded(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    # The hub's cache stores files under their digests: look inside.
    file = MappedFile(path)
    start = file.bytes(0, 9)
    file.close()
    if start.startswith(MAGIC):
        return open_gguf(path)
    if start[8:] == b"{":
        return open_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES or start.startswith((b"PK\x03\x04", b"\x80")):
        raise _pickle_error(path)
    raise CheckpointError(
        path, "file", "is neither GGUF nor safetensors", remedy="name a .gguf or .safetensors checkpoint"
    )


def _pickle_error(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path} is a pickle file, which can run any code when it is loaded, so it never is",
        remedy="convert it once where you trust it: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')",
    )
