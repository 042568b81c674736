"""The real server in a process of its own, with the scripted engine behind it. Its argument: ServeConfig as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.core.logging import configure_logging
from deepseek_r1.serve.app import run_server

if __name__ == "__main__":
    configure_logging("INFO")
    engine = [sys.executable, str(Path(__file__).parent / "scripted_engine.py")]
    try:
        run_server(ServeConfig(**json.loads(sys.argv[1])), engine_command=engine)
    except DeepSeekError as error:
        print(f"error: {error.message} -- {error.remedy}", flush=True)
        sys.exit(error.exit_code)
