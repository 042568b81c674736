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
        help="'default' (the embedded model), a folder, a GGUF or safetensors file, a config.json alone, or a hub id",
        metavar="MODEL",
        positional=True,
    )
    svg: str | None = option(default=None, help="also draw the architecture into this file, as SVG", metavar="FILE")
    json: bool = option(default=False, help="print JSON")
