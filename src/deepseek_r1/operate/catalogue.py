"""Which models are on this machine, and what one of them is made of. Reads headers only, and no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepseek_r1.core.environment import hub_cache_dir, models_dir
from deepseek_r1.core.errors import DeepSeekError, UnsupportedError
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.locate import locate_model


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A model that can be served without fetching anything. `name` is what `serve` takes."""

    name: str
    format: str
    nbytes: int
    path: Path


def local_models() -> list[LocalModel]:
    """The embedded default, then the models folder, then the hub's cache."""
    return [*_default(), *_in_folder(models_dir()), *_in_hub_cache(hub_cache_dir())]


def _default() -> Iterator[LocalModel]:
    try:
        path = locate_model("default")
    except DeepSeekError:
        return  # not installed: `doctor` says so, and how to mend it
    yield LocalModel("default", "gguf", path.stat().st_size, path)


def _in_folder(folder: Path) -> Iterator[LocalModel]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if found := _checkpoint_at(path):
            yield LocalModel(str(path), *found, path)


def _in_hub_cache(folder: Path) -> Iterator[LocalModel]:
    """Complete snapshots, laid out as `models--owner--name/snapshots/<revision>`, named by the hub's id."""
    for repository in sorted(folder.glob("models--*")):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in sorted(repository.glob("snapshots/*")):
            if found := _checkpoint_at(snapshot):
                yield LocalModel(name, *found, snapshot)


def _checkpoint_at(path: Path) -> tuple[str, int] | None:
    """(format, bytes of weights) of a checkpoint at `path`, or None where there is none."""
    if path.is_file():
        return ("gguf", path.stat().st_size) if path.suffix == ".gguf" else None
    for format, pattern in (("safetensors", "*.safetensors"), ("gguf", "*.gguf")):
        files = [file for file in path.glob(pattern) if file.is_file()]  # a fetch that was cut off leaves dead links
        if files and (format == "gguf" or (path / "config.json").is_file()):
            return format, sum(file.stat().st_size for file in files)
    return None


def describe_model(name: str) -> dict[str, Any]:
    """What the model called `name` is made of, as plain data.

    Keys: model, path, format, family, parameters, bytes, config (None with the reason under `unsupported` where the
    architecture is unknown here), tensors by storage type, chat_template. Raises the errors of locating and opening.
    """
    from deepseek_r1.models.checkpoint.open import open_checkpoint
    from deepseek_r1.models.registry import read_config

    with open_checkpoint(locate_model(name)) as checkpoint:
        config: dict[str, Any] | None = None
        unsupported = None
        try:
            shape = read_config(checkpoint)
            config = dataclasses.asdict(shape)
        except UnsupportedError as error:
            unsupported = error.message
        types: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
        for tensor in checkpoint.tensors.values():
            entry = types[tensor.dtype]
            entry["tensors"] += 1
            entry["parameters"] += math.prod(tensor.shape)
            entry["bytes"] += tensor.nbytes
        return {
            "model": name,
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "family": config["family"] if config else _named_architecture(checkpoint),
            "unsupported": unsupported,
            "parameters": sum(entry["parameters"] for entry in types.values()),
            "bytes": sum(entry["bytes"] for entry in types.values()),
            "chat_template": _has_chat_template(checkpoint),
            "config": config,
            "tensors": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        }


def _named_architecture(checkpoint: Checkpoint) -> str | None:
    name = checkpoint.metadata.get("general.architecture" if checkpoint.format == "gguf" else "model_type")
    return name if isinstance(name, str) else None


def _has_chat_template(checkpoint: Checkpoint) -> bool:
    if checkpoint.format == "gguf":
        return isinstance(checkpoint.metadata.get("tokenizer.chat_template"), str)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        with (folder / "tokenizer_config.json").open("rb") as file:
            settings = json.loads(file.read(64 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
