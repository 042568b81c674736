"""Which models are on this machine, and what one of them is made of. Reads headers only, and no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_r1.core.environment import hub_cache_dir, models_dir
from deepseek_r1.core.errors import DeepSeekError, ModelNotFoundError, UnsupportedError
from deepseek_r1.models.locate import HUB_ID, locate_model

if TYPE_CHECKING:
    from deepseek_r1.models.checkpoint.base import Checkpoint, TensorInfo
    from deepseek_r1.models.config import ModelConfig
    from deepseek_r1.models.families.base import Family


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


@dataclasses.dataclass(frozen=True)
class Header:
    """All that is known of a model before its weights are read.

    `format` is "config" where there is a config.json without weights; `tensors` is empty then. `family` and `config`
    are None for an architecture that isn't built here; `unsupported` says why.
    """

    path: Path
    format: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    family: Family | None
    config: ModelConfig | None
    unsupported: UnsupportedError | None


def find_local(name: str) -> Path:
    """Where the model called `name` lies on this machine; of one in the hub's cache, its config.json is enough.

    Raises `ModelNotFoundError`. Nothing is fetched.
    """
    if not HUB_ID.fullmatch(name) or name.endswith(".gguf") or Path(name).expanduser().exists():
        return locate_model(name)
    repository = hub_cache_dir() / f"models--{name.replace('/', '--')}"
    try:
        folder = repository / "snapshots" / (repository / "refs/main").read_text().strip()
    except (OSError, ValueError):
        folder = repository
    if _checkpoint_at(folder) or (folder / "config.json").is_file():
        return folder
    raise ModelNotFoundError(
        f"{name} is not on this machine",
        remedy=f"fetch it with `deepseek-r1 models pull {name}`, or give the path of its config.json alone",
    )


def read_header(path: Path) -> Header:
    """The header of a checkpoint, of a config.json, or of a folder with a config.json and no weights.

    Raises the errors of opening a checkpoint, and `CheckpointError` for a configuration that makes no sense.
    """
    from deepseek_r1.models.checkpoint.open import open_checkpoint
    from deepseek_r1.models.config import Fields
    from deepseek_r1.models.registry import read_config, read_family

    bare = _bare_config(path)
    with open_checkpoint(path) if bare is None else _open_bare(path, bare) as checkpoint:
        family, config, unsupported = None, None, None
        try:
            family = read_family(checkpoint)
            if bare is None:
                config = read_config(checkpoint)
            else:
                config = family.from_hf(Fields(bare, checkpoint.metadata))
        except UnsupportedError as error:
            unsupported = error
        format = checkpoint.format if bare is None else "config"
        return Header(checkpoint.path, format, checkpoint.metadata, checkpoint.tensors, family, config, unsupported)


def _bare_config(path: Path) -> Path | None:
    """The config.json to read where `path` names one, or a folder with one and no weights."""
    if path.is_dir():
        weights = any(file.suffix in (".safetensors", ".gguf") and file.is_file() for file in path.iterdir())
        return path / "config.json" if not weights and (path / "config.json").is_file() else None
    return path if path.suffix == ".json" and not path.name.endswith(".safetensors.index.json") else None


def _open_bare(path: Path, config: Path) -> Checkpoint:
    from deepseek_r1.models.checkpoint.base import Checkpoint
    from deepseek_r1.models.checkpoint.mapped import MappedFile
    from deepseek_r1.models.checkpoint.safetensors import MAX_CONFIG_BYTES
    from deepseek_r1.models.checkpoint.strict_json import parse_object

    file = MappedFile(config)
    try:
        if file.size > MAX_CONFIG_BYTES:
            raise file.error("size", f"is {file.size} bytes, at most {MAX_CONFIG_BYTES} are allowed")
        return Checkpoint(path, "safetensors", parse_object(file, 0, file.size, "content", strict=False), {}, ())
    finally:
        file.close()


def describe_model(name: str) -> dict[str, Any]:
    """What the model called `name` is made of, as plain data.

    Keys: model, path, format, family, parameters (scales of FP8 blocks are none), bytes, config and architecture (None
    with the reason under `unsupported` where the architecture is unknown here), tensors by storage type,
    chat_template. Raises the errors of locating and opening.
    """
    from deepseek_r1.models.shapes import parameter_count
    from deepseek_r1.operate.architecture import describe_architecture

    header = read_header(find_local(name))
    shape = header.config
    types: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
    for tensor in header.tensors.values():
        entry = types[tensor.dtype]
        entry["tensors"] += 1
        entry["parameters"] += 0 if _is_scale(tensor.name, header.tensors) else math.prod(tensor.shape)
        entry["bytes"] += tensor.nbytes
    stored = sum(entry["parameters"] for entry in types.values())
    return {
        "model": name,
        "path": str(header.path),
        "format": header.format,
        "family": header.family.name if header.family else _named_architecture(header),
        "unsupported": header.unsupported.message if header.unsupported else None,
        "parameters": parameter_count(shape) if shape is not None and not header.tensors else stored,
        "bytes": sum(entry["bytes"] for entry in types.values()),
        "chat_template": _has_chat_template(header),
        "config": None if shape is None else dataclasses.asdict(shape),
        "architecture": None if shape is None else describe_architecture(shape),
        "tensors": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
    }


def _is_scale(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor holds the scales of another one's blocks: they belong to its storage, not to the model."""
    from deepseek_r1.models.checkpoint import fp8

    base = tensors.get(name.removesuffix(fp8.SCALE_SUFFIX))
    return name.endswith(fp8.SCALE_SUFFIX) and base is not None and base.dtype == fp8.DTYPE


def _named_architecture(header: Header) -> str | None:
    name = header.metadata.get("general.architecture" if header.format == "gguf" else "model_type")
    return name if isinstance(name, str) else None


def _has_chat_template(header: Header) -> bool:
    if header.format == "gguf":
        return isinstance(header.metadata.get("tokenizer.chat_template"), str)
    folder = header.path if header.path.is_dir() else header.path.parent
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        with (folder / "tokenizer_config.json").open("rb") as file:
            settings = json.loads(file.read(64 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
