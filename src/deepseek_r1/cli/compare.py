"""`deepseek-benchmark --compare`: our engine and others in rounds, as a table, a report and a chart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deepseek_r1.cli.benchmark import require_folder, write
from deepseek_r1.cli.terminal import Progress, table
from deepseek_r1.config.bench import BenchmarkConfig
from deepseek_r1.core import environment
from deepseek_r1.operate.catalogue import find_local, read_header
from deepseek_r1.operate.compare import chart, peers, report, rounds
from deepseek_r1.operate.compare.cases import parse_cases
from deepseek_r1.operate.limits import bandwidth_probe


def compare(config: BenchmarkConfig) -> int:
    """Compare, print the table, write the files. Exit code 1 when a peer failed."""
    require_folder(config.chart)
    cases = parse_cases(config.cases)
    path = find_local(config.model)
    peers_dir = Path(config.peers_dir or environment.cache_dir() / "peers").expanduser()
    mine = peers.ours(config.model, config.precision, config.memory, config.speculative)
    everyone = [mine, *peers.parse_peers(config.compare or "", path, peers_dir, _forms(config, path, peers_dir))]
    header = read_header(path)
    if header.config is None:
        raise header.unsupported or AssertionError("a header without a configuration says why")
    probe, bandwidth = bandwidth_probe()
    progress = Progress()
    threads = config.threads or environment.cpu_count()
    outcome = rounds.compare(
        everyone,
        cases,
        rounds=config.rounds,
        seed=config.seed,
        vocab_size=header.config.vocab_size,
        threads=threads,
        bandwidth=bandwidth,
        say=progress,
    )
    progress.end()
    found = report.report(everyone, cases, outcome, {**config.to_dict(), "threads": threads}, probe)
    print(_page(found))
    for label, error in outcome.failed.items():
        print(f"failed: {label}: {error}", file=sys.stderr)
    if config.json is not None:
        write(Path(config.json), json.dumps(found, indent=1) + "\n")
    if config.chart is not None:
        write(Path(config.chart), chart.svg(found, f"{'/'.join(path.parts[-2:])}, {config.precision}"))
    return 1 if outcome.failed else 0


def _forms(config: BenchmarkConfig, path: Path, peers_dir: Path) -> Path:
    """Where the forms of the model lie that peers read."""
    if config.peer_models is not None:
        return Path(config.peer_models).expanduser()
    return peers_dir / "models" / "smollm2" if config.model == "default" else path.parent


def _page(found: dict[str, Any]) -> str:
    engines = "\n".join(_engine(engine) for engine in found["engines"] if "versions" in engine)
    figures = table(report.HEADER, report.table_rows(found), text=report.TEXT)
    words = (
        f"GB/s: {found['bandwidth_probe']}, just before each run. same: as our tokens, up to the first other one.\n"
        "ours / theirs: of speeds, round by round; above 1 ours is faster."
    )
    return f"{figures}\n\n{words}\n\n{engines}"


def _engine(engine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in engine["versions"].items())
    flags = ", ".join(f"{name}={value}" for name, value in engine["flags"].items())
    return f"{engine['label']}: {versions}; {engine['threads']} threads; {flags}"
