"""Logging of the package: one logger tree, compact lines on stderr, optionally a bounded file."""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path

from deepseek_r1.core.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LEVEL_VARIABLE = "DEEPSEEK_R1_LOG_LEVEL"
"""Environment variable that wins over the level a program asks for."""

MAX_FILE_BYTES = 10 << 20
"""A log file is turned over at this size; three older ones are kept."""


def configure_logging(level: str = "INFO", file: str | Path | None = None) -> None:
    """Send the package's log lines of at least `level` to stderr, and to `file` when one is given.

    Calling it again replaces the earlier choice. The file's folder is made on demand and only the user can read the
    file. Raises `ConfigError` for an unknown level or a file that can't be opened.
    """
    level = (os.environ.get(LEVEL_VARIABLE) or level).upper()
    if level not in LEVELS:
        raise ConfigError(f"unknown log level {level!r}", remedy=f"levels: {', '.join(LEVELS)}")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].setFormatter(_Compact("%(asctime)s %(levelname).1s %(where)s: %(message)s", "%H:%M:%S"))
    if file is not None:
        handlers.append(_file_handler(Path(file)))
    logger = logging.getLogger("deepseek_r1")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(level)


class _Compact(logging.Formatter):
    """Names the module without the package's own name: "serve.app"."""

    def format(self, record: logging.LogRecord) -> str:
        record.where = record.name.removeprefix("deepseek_r1.")
        return super().format(record)


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=3, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"log file {path} cannot be written: {error.strerror}",
            remedy="set XDG_STATE_HOME to a folder you can write",
        ) from None
    handler.setFormatter(_Compact("%(asctime)s %(process)d %(levelname)s %(where)s: %(message)s"))
    return handler
