"""The verb `serve`."""

from __future__ import annotations

from deepseek_r1.config.serve import ServeConfig


def serve(config: ServeConfig) -> int:
    """Run the server until it is told to stop."""
    from deepseek_r1.core.environment import log_dir
    from deepseek_r1.core.logging import configure_logging
    from deepseek_r1.serve.app import run_server

    configure_logging("INFO", file=log_dir() / "serve.log")
    run_server(config)
    return 0
