"""Settings of the verbs that look at a training run."""

from __future__ import annotations

from deepseek_r1.config.base import Config, option

_FOLDER = "the folder that the trainer writes the run to"
_PORT = "port of the page, on this machine alone; 0 takes a free one"


class RunViewConfig(Config):
    """What `deepseek-r1 runs view` is told. Folders are checked where they are used."""

    folder: str | None = option(default=None, help=_FOLDER, metavar="FOLDER", positional=True)
    port: int = option(default=0, help=_PORT, minimum=0, maximum=65535, short="-p")


class RunReportConfig(Config):
    """What `deepseek-r1 runs report` is told."""

    folder: str | None = option(default=None, help=_FOLDER, metavar="FOLDER", positional=True)


class RolloutsViewConfig(Config):
    """What `deepseek-r1 rollouts view` is told."""

    folder: str | None = option(default=None, help=_FOLDER, metavar="FOLDER", positional=True)
    step: int | None = option(default=None, help="only those of this step", minimum=0)
    family: str | None = option(default=None, help="only those of this family of tasks", metavar="NAME")
    limit: int = option(default=10, help="rollouts to print, newest first", minimum=1, maximum=100_000)
    page: bool = option(default=False, help="open them in the run's page instead, where they are filtered")
    port: int = option(default=0, help=f"with --page: {_PORT}", minimum=0, maximum=65535, short="-p")
