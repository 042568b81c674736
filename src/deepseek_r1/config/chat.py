"""Settings of the chat in the terminal."""

from __future__ import annotations

from deepseek_r1.config.base import option
from deepseek_r1.config.local import SamplingConfig


class ChatConfig(SamplingConfig):
    """What `deepseek-r1 chat` is told."""

    system: str | None = option(default=None, help="system message that the conversation starts with", metavar="TEXT")
