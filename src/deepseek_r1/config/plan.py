"""Settings of the verb that plans a model on a machine."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option


class PlanConfig(Config):
    """What `deepseek-r1 plan` is told."""

    model: str = option(
        default="default",
        help="'default', a folder, a GGUF or safetensors file, a config.json alone, or the id of a model in the "
        "hub's cache",
        metavar="MODEL",
        positional=True,
    )
    memory: int | None = option(
        default=None,
        help="memory to plan with, for all that serving takes (as 4GiB); default: what is free",
        minimum=1,
        size=True,
    )
    context: int | None = option(
        default=None, help="tokens of one request, prompt and answer; default: 4096, or the model's limit", minimum=1
    )
    concurrent: int = option(default=1, help="requests computed at the same time", minimum=1, maximum=1024)
    bandwidth: float | None = option(
        default=None,
        help="bandwidth of the memory in GB/s; default: measured in a quarter of a second",
        minimum=0.001,
        maximum=1e6,
        metavar="GB/s",
    )
    json: bool = option(default=False, help="print JSON")
