"""The adapter that belongs to the embedded default model, installed with the package. No torch here."""

from __future__ import annotations

from pathlib import Path

NAME = "r1-lite"
FOLDER = Path(__file__).parent / "r1_lite"


def embedded_adapter(model: str) -> tuple[str, Path] | None:
    """The name and the folder of the adapter that `model` is served with, None for all but "default".

    None too where the folder isn't there. What lies in it is checked by whoever loads it.
    """
    return (NAME, FOLDER) if model == "default" and FOLDER.is_dir() else None
