"""Settings of the benchmark."""

from __future__ import annotations

from deepseek_r1.config.base import option
from deepseek_r1.config.local import LocalModelConfig
from deepseek_r1.core.errors import ConfigError


class BenchmarkConfig(LocalModelConfig):
    """What `deepseek-benchmark` is told. Without `url` the model runs in this process."""

    url: str | None = option(
        default=None, help="measure this OpenAI-compatible server instead (MODEL is its name there)", metavar="URL"
    )
    api_key: str | None = option(
        default=None, help="bearer token for --url", secret=True, env="DEEPSEEK_R1_API_KEY", metavar="KEY"
    )
    concurrency: tuple[int, ...] = option(
        default=(1, 4, 16), help="requests in flight at a time, one level after the other", minimum=1, maximum=1024
    )
    prompts: int = option(
        default=16, help="requests at each level (at least one per slot is sent)", minimum=1, maximum=100_000
    )
    prompt_tokens: int = option(default=128, help="length of each prompt in tokens", minimum=1, maximum=1_000_000)
    max_tokens: int = option(default=64, help="tokens generated per request", minimum=1, maximum=1_000_000)
    seed: int = option(default=0, help="seed of the prompts", minimum=0)
    timeout: float = option(
        default=600.0, help="seconds a request to --url may stay silent", minimum=0.1, maximum=86_400
    )
    json: str | None = option(default=None, help="also write the results to this file", metavar="FILE")

    def check(self) -> None:
        """Besides the model's checks: at least one level, and an address that can be called."""
        super().check()
        if not self.concurrency:
            raise ConfigError("concurrency must name at least one level", remedy="write --concurrency 1,4,16")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.url!r} is not an http address", remedy="write http://127.0.0.1:8080")
