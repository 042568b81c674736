"""Settings of the verbs that list and describe models."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option


class ListConfig(Config):
    """What `deepseek-r1 models list` is told."""

    json: bool = option(default=False, help="print JSON")


class InspectConfig(Config):
    """What `deepseek-r1 models inspect` is told."""

    model: str = option(
        default="default",
        help="'default' (the embedded model), a folder, a GGUF or safetensors file, or a hub id",
        metavar="MODEL",
        positional=True,
    )
    json: bool = option(default=False, help="print JSON")
