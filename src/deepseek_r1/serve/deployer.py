"""`Deployer`: the server from Python, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from deepseek_r1.config.adapters import checked_adapters
from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import UnsupportedError


def check_device_map(device_map: str) -> None:
    """Raise `UnsupportedError` for placements that are not there yet."""
    if device_map not in ("auto", "cpu"):
        raise UnsupportedError(f"device_map={device_map!r} is not available yet", remedy="available: 'auto', 'cpu'")


def precision_name(precision: str | DeepSeekConfig) -> str:
    """A precision as `ServeConfig` spells it."""
    return precision.name if isinstance(precision, DeepSeekConfig) else precision


class Deployer:
    """Serves one model over the OpenAI-compatible API.

    `model_path` is a path, a hub id or "default"; `adapters` are folders of low-rank adapters by name. Raises
    `ConfigError` or `UnsupportedError` at once for a precision or a placement that does not exist.
    """

    def __init__(
        self,
        model_path: str | PathLike[str] = "default",
        precision: str | DeepSeekConfig = "auto",
        device_map: str = "auto",
        adapters: Mapping[str, str | PathLike[str]] = {},
    ) -> None:
        check_device_map(device_map)
        self.config = ServeConfig(
            model=fspath(model_path),
            precision=precision_name(precision),
            adapter=tuple(f"{name}={folder}" for name, folder in checked_adapters(adapters).items()),
        )

    def serve(self, port: int = 8080, max_concurrent: int = 32, stream_interval: float = 0.05, **options: Any) -> None:
        """Serve until Ctrl-C. `options` are the other fields of `ServeConfig` (host, memory, default_adapter, …).

        Raises `DeepSeekError` when the server can't start, with what is wrong and how to mend it.
        """
        from deepseek_r1.serve.app import run_server

        run_server(
            self.config.update(port=port, max_concurrent=max_concurrent, stream_interval=stream_interval, **options)
        )
