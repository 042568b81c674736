"""Settings of the check-up of the machine."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option


class DoctorConfig(Config):
    """What `deepseek-r1 doctor` is told."""

    port: int = option(default=8080, help="port that should be free", minimum=1, maximum=65535)
    json: bool = option(default=False, help="print JSON")
