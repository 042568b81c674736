"""Settings of a single completion on the command line."""

from __future__ import annotations

from deepseek_r1.config.base import option
from deepseek_r1.config.local import SamplingConfig


class GenerateConfig(SamplingConfig):
    """What `deepseek-r1 generate` is told."""

    prompt: str | None = option(default=None, help="text to continue; default: standard input", metavar="TEXT")
    json: bool = option(default=False, help="print one JSON object when done instead of streaming text")
