"""What R1-Lite's runs took and made, read from their folders."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError
from deepseek_r1.models.adapters import WEIGHTS_FILE
from deepseek_r1.operate.runs.read import read_curves, read_run

MAX_JSON_BYTES = 64 << 20


def run_facts(folder: Path) -> dict[str, Any]:
    """What a finished run took and made: its steps' seconds, its adapter's digest, its settings without paths."""
    fields, curves = read_run(folder).fields, read_curves(folder)
    seconds = curves.by_name["seconds"].values
    weights = folder / "result" / WEIGHTS_FILE
    settings = read_json(folder / "recipe.json") or {}
    started = settings.pop("start_from", None)
    return {
        "steps": curves.step,
        "seconds": math.fsum(value for value in seconds if not math.isnan(value)),
        "start_from": Path(started).parent.name if started else None,
        "data_digest": fields.get("data_digest"),
        "path": fields.get("path"),
        "versions": fields.get("versions"),
        "adapter_sha256": file_digest(weights),
        "adapter_bytes": weights.stat().st_size,
        "settings": {name: value for name, value in settings.items() if name not in ("data", "model", "path")},
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """An object that this recipe has written, None where there is no such file. Raises `ConfigError` for another."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_JSON_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not what this recipe writes", remedy="remove the file, and run this again")
    return found


def commit() -> str | None:
    """The commit of the checkout that this file is in ("-dirty": with changes); None outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
