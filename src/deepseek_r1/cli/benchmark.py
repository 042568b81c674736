"""The verb `benchmark`, which is also the program `deepseek-benchmark`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepseek_r1.cli.terminal import Progress, table
from deepseek_r1.config.bench import BenchmarkConfig
from deepseek_r1.core.environment import machine_summary, package_versions
from deepseek_r1.core.errors import ConfigError, DeepSeekError
from deepseek_r1.core.version import __version__
from deepseek_r1.operate.benchmark import Target, measure_level, prompt_words, run_one


def benchmark(config: BenchmarkConfig) -> int:
    """Measure every level, print the table, write the file. Exit code 1 when any request failed."""
    require_folder(config.json)
    if config.compare is not None:
        from deepseek_r1.cli.compare import compare

        return compare(config)
    progress = Progress()
    with _target(config) as target:
        levels = list(_levels(target, config, progress))
    progress.end()
    print(_table(levels))
    for level in levels:
        for error in level["errors"]:
            print(f"failed at concurrency {level['concurrency']}: {error}", file=sys.stderr)
    if config.json is not None:
        write(Path(config.json), json.dumps(_report(config, levels), indent=2) + "\n")
    return 1 if any(level["failed"] for level in levels) else 0


@contextlib.contextmanager
def _target(config: BenchmarkConfig) -> Iterator[Target]:
    from deepseek_r1.operate.benchmark_targets import HttpTarget, LocalTarget

    if config.url is not None:
        yield HttpTarget(config.url, config.model, config.api_key, config.max_tokens, config.timeout)
        return
    from deepseek_r1.serve.local import DeepSeekModel

    with DeepSeekModel.from_pretrained(
        config.model,
        precision=config.precision,
        memory=config.memory,
        max_concurrent=max(config.concurrency),
        speculative=config.speculative,
    ) as model:
        yield LocalTarget(model, config.max_tokens)


def _levels(target: Target, config: BenchmarkConfig, progress: Progress) -> Iterator[dict[str, Any]]:
    def prompt(index: int) -> Any:
        return target.prompt(prompt_words(config.seed, index, config.prompt_tokens), config.prompt_tokens)

    progress("warm-up")
    warm_up = run_one(target, prompt(0))
    if warm_up.error is not None:
        raise DeepSeekError(f"the first request failed: {warm_up.error}", remedy="mend that, then measure again")
    used = 1
    for concurrency in config.concurrency:
        requests = max(config.prompts, concurrency)
        prompts = [prompt(used + index) for index in range(requests)]
        used += requests
        tenths = {requests * tenth // 10 for tenth in range(1, 11)}

        def show(done: int, level: int = concurrency, total: int = requests, shown: set[int] = tenths) -> None:
            if done in shown:
                progress("benchmark", concurrency=level, done=done, requests=total)

        yield measure_level(target, prompts, concurrency, show)


def _table(levels: list[dict[str, Any]]) -> str:
    header = (
        *("concurrency", "requests", "failed", "output tok/s", "total tok/s"),
        *("ttft p50 ms", "ttft p99 ms", "itl p50 ms", "itl p99 ms"),
    )
    rows = []
    for level in levels:
        first, between = level["time_to_first_token_ms"], level["inter_token_ms"]
        rows.append(
            (
                *(str(level[name]) for name in ("concurrency", "requests", "failed")),
                *(f"{level[name]:.1f}" for name in ("output_tokens_per_second", "total_tokens_per_second")),
                *(f"{part[q]:.1f}" if part else "-" for part in (first, between) for q in ("p50", "p99")),
            )
        )
    return table(header, rows)


def _report(config: BenchmarkConfig, levels: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "deepseek-benchmark",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": "offline" if config.url is None else "url",
        "settings": config.to_dict(),
        "machine": machine_summary(),
        "versions": {"deepseek_r1": __version__, **package_versions(("torch", "numpy"))},
        "levels": levels,
    }


def require_folder(path: str | None) -> None:
    """Raise `ConfigError` before anything is measured where the results could not be written."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist", remedy="make the folder, then measure")


def write(path: Path, text: str) -> None:
    """Write a report whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
