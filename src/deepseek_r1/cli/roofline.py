"""The verb `roofline`, which is also `deepseek-benchmark roofline`."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_r1.cli.benchmark import require_folder, write
from deepseek_r1.cli.terminal import Progress, table
from deepseek_r1.config.bench import RooflineConfig
from deepseek_r1.core import environment
from deepseek_r1.core.errors import ConfigError

if TYPE_CHECKING:
    from deepseek_r1.operate.limits import Limits
    from deepseek_r1.operate.roofline import Phase

HEADER = ("phase", "tokens/s", "min to max", "GB read", "GOP", "of bandwidth", "of peak", "of the bound", "GB/s now")


def roofline(config: RooflineConfig) -> int:
    """Measure the limits, then every phase; print both, write the file."""
    from deepseek_r1.models.locate import locate_model
    from deepseek_r1.operate.compare.cases import parse_cases
    from deepseek_r1.operate.compare.peers import ours
    from deepseek_r1.operate.limits import bandwidth_probe, measure_limits
    from deepseek_r1.operate.roofline import measure, open_model

    require_folder(config.json)
    cases = parse_cases(config.cases)
    if any(case.phase == "cold" for case in cases):
        raise ConfigError("a cold start has no roofline", remedy="leave out cold")
    model = open_model(locate_model(config.model), config.precision)
    progress = Progress()
    progress("limits")
    limits = measure_limits()
    phases, about = measure(
        ours(config.model, config.precision, config.memory),
        model,
        cases,
        limits,
        rounds=config.rounds,
        seed=config.seed,
        threads=config.threads or environment.cpu_count(),
        bandwidth=bandwidth_probe()[1],
        say=progress,
    )
    progress.end()
    print(_page(limits, phases))
    if config.json is not None:
        write(Path(config.json), json.dumps(_report(config, limits, phases, about), indent=1) + "\n")
    return 0


def _page(limits: Limits, phases: list[Phase]) -> str:
    peaks = ", ".join(f"{name} {rate / 1e12:.2f} TOP/s" for name, rate in limits.peaks.items())
    rows = [
        (
            phase.case.words,
            f"{phase.rate['median']:.1f}",
            f"{phase.rate['min']:.1f} to {phase.rate['max']:.1f}",
            f"{phase.work.read / 1e9:.2f}",
            f"{phase.work.operations / 1e9:.0f}",
            *(f"{share['median']:.0%}" for share in (phase.of_bandwidth, phase.of_peak, phase.of_bound)),
            f"{phase.bandwidth['median'] / 1e9:.1f}",
        )
        for phase in phases
    ]
    words = (
        "GB read, GOP: what the phase takes at least, all its steps together. of bandwidth: of what was measured just\n"
        f"before each run. of peak: of {phases[0].format}. of the bound: the least possible time over the time it took."
    )
    return f"read bandwidth {limits.bandwidth / 1e9:.1f} GB/s; {peaks}\n\n{table(HEADER, rows)}\n\n{words}"


def _report(config: RooflineConfig, limits: Limits, phases: list[Phase], about: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "deepseek-benchmark roofline",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": config.to_dict(),
        "machine": environment.machine_summary(),
        "engine": about,
        "limits": dataclasses.asdict(limits),
        "phases": [dataclasses.asdict(phase) for phase in phases],
    }
