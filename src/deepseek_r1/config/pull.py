"""Settings of the verb that fetches a model from the hub."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option


class PullConfig(Config):
    """What `deepseek-r1 models pull` is told. Ids, revisions and files are checked where they are used."""

    repo: str | None = option(default=None, help="hub id of the model, as owner/name", metavar="REPO", positional=True)
    revision: str = option(default="main", help="branch, tag or commit to fetch", metavar="NAME")
    file: str | None = option(
        default=None, help="GGUF file to fetch, where the repository holds several", metavar="NAME.gguf"
    )
    json: bool = option(default=False, help="print JSON")
