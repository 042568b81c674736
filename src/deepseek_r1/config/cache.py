"""Settings of the verbs that show and empty the cache of packed weights."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option


class CacheConfig(Config):
    """What `deepseek-r1 cache list` and `cache clear` are told."""

    json: bool = option(default=False, help="print JSON")
