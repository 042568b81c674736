"""The verbs `cache list` and `cache clear`."""

from __future__ import annotations

import dataclasses
import json
import time

from deepseek_r1.cli.terminal import size, table, visible
from deepseek_r1.config.cache import CacheConfig


def list_cache(config: CacheConfig) -> int:
    """Print the packed weights that are kept, what was used last first, and how much room they have."""
    from deepseek_r1.models import cache_files

    entries, most = cache_files.entries(), cache_files.limit()
    if config.json:
        files = [{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries]
        print(json.dumps({"folder": str(cache_files.folder()), "limit_bytes": most, "files": files}, indent=2))
        return 0
    rows = [
        (
            entry.model or "can't be read",
            entry.precision or "",
            entry.kernels or "",
            size(entry.nbytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        )
        for entry in entries
    ]
    if rows:
        print(visible(table(("model", "precision", "kernels", "size", "last used"), rows, text=("model", "precision"))))
    total = size(sum(entry.nbytes for entry in entries))
    print(f"{total} of at most {size(most)} in {cache_files.folder()}")
    return 0


def clear_cache(config: CacheConfig) -> int:
    """Remove all packed weights; the next start of each model packs them anew."""
    from deepseek_r1.models import cache_files

    count, nbytes = cache_files.clear()
    if config.json:
        print(json.dumps({"files": count, "bytes": nbytes}, indent=2))
    else:
        print(f"Removed {count} {'file' if count == 1 else 'files'}, {size(nbytes)}.")
    return 0
