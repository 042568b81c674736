"""The verbs `runs view`, `runs report` and `rollouts view`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_r1.cli.terminal import visible
from deepseek_r1.config.runs import RolloutsViewConfig, RunReportConfig, RunViewConfig
from deepseek_r1.core.errors import ConfigError

if TYPE_CHECKING:
    from deepseek_r1.operate.runs.rows import Rollout

_BOLD, _DIM, _GREEN, _RED, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


def view_run(config: RunViewConfig) -> int:
    """Serve the run's page until it is interrupted."""
    return _serve(_folder(config.folder), config.port)


def report_run(config: RunReportConfig) -> int:
    """Write the run's report, and print where it is."""
    from deepseek_r1.operate.runs.report import write_report

    for path in write_report(_folder(config.folder)):
        print(path)
    return 0


def view_rollouts(config: RolloutsViewConfig) -> int:
    """Print a run's rollouts, newest first, or serve its page at them."""
    from deepseek_r1.operate.runs.read import read_run
    from deepseek_r1.operate.runs.rollouts import Filters, RolloutIndex

    folder = _folder(config.folder)
    if config.page:
        if config.step is not None or config.family is not None:
            raise ConfigError("the page has filters of its own", remedy="leave out --step and --family, or --page")
        return _serve(folder, config.port, "#rollouts")
    read_run(folder)
    index = RolloutIndex(folder)
    index.refresh()
    filters = Filters(family=config.family, step=config.step)
    left, before, matching = config.limit, None, 0
    while left > 0:  # each selection is of bounded size
        found = index.select(filters, before=before, limit=left)
        matching = found.matching
        for place, row in found.rows:
            print(_rollout(row, sys.stdout.isatty()), end="\n\n")
            before = place
        left -= len(found.rows)
        if not found.more or not found.rows:
            break
    shown = config.limit - left
    words = "rollout matches" if matching == 1 else "rollouts match"
    print(f"{matching:,} {words}, {shown:,} shown" if matching else "No rollout matches.")
    return 0


def _folder(folder: str | None) -> Path:
    if not folder:
        raise ConfigError("no folder was named", remedy="name the folder that the trainer writes the run to")
    return Path(folder).expanduser()


def _serve(folder: Path, port: int, tab: str = "") -> int:
    from deepseek_r1.operate.runs.page import RunServer

    with RunServer(folder, port) as server:
        print(f"The run's page: {server.url}{tab}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Stopped.", flush=True)
    return 0


def _rollout(row: Rollout, colours: bool) -> str:
    """A rollout as lines: what is known of it, its prompt, its text."""
    from deepseek_r1.operate.runs.contents import rollout_facts

    def painted(colour: str, words: str) -> str:
        return f"{colour}{words}{_PLAIN}" if colours else words

    sign = _BOLD if not row.reward else _BOLD + (_GREEN if row.reward > 0 else _RED)
    lines = [painted(sign, visible(rollout_facts(row)))]
    if row.error:
        lines.append(painted(_RED, visible(f"error: {row.error}")))
    lines += [painted(_DIM, visible(row.prompt)), painted(_DIM, "---"), visible(row.text)]
    return "\n".join(lines)
