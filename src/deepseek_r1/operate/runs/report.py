"""Writes a run's report beside its files: one HTML page that needs nothing else, and Markdown with pictures."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from deepseek_r1.operate.runs.as_html import as_html
from deepseek_r1.operate.runs.as_markdown import as_markdown, pictures
from deepseek_r1.operate.runs.contents import gather
from deepseek_r1.operate.runs.read import RunError


def write_report(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write report.html, report.md and its SVG pictures into a run's folder; returns the paths of the first two.

    Works while the run goes on. Raises `RunError` where the folder holds no run or can't be written.
    """
    path = Path(folder)
    contents = gather(path)
    files = {**pictures(contents), "report.md": as_markdown(contents), "report.html": as_html(contents)}
    for name, text in files.items():
        write_text(path / name, text)
    return path / "report.html", path / "report.md"


def write_text(path: Path, text: str) -> None:
    """Replace a file in one rename: a link of that name is not followed. Raises `RunError` where that can't be."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise RunError(
            f"{path}: can't be written: {error.strerror}", remedy="check the folder's permissions and its disk"
        ) from None
