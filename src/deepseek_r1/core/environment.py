"""What the machine offers this process: folders, memory, processors. Standard library only, limits of containers kept.

Functions that read the kernel's files take `root` so that tests can put other files in their place.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepseek_r1.core.errors import ConfigError

_APP = "deepseek-r1"
_ROOT = Path("/")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number just below 2**63; anything from here on counts as none."""

INFERENCE_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""The CPU flags (x86 and ARM) that matter for the speed of inference, in the order they are shown."""


def cache_dir() -> Path:
    """Where caches go: `$XDG_CACHE_HOME/deepseek-r1`. Not created here."""
    return _xdg("XDG_CACHE_HOME", ".cache") / _APP


def data_dir() -> Path:
    """Where the user's models go: `$XDG_DATA_HOME/deepseek-r1`. Not created here."""
    return _xdg("XDG_DATA_HOME", ".local/share") / _APP


def models_dir() -> Path:
    """Folder whose GGUF files and checkpoint folders `deepseek-r1 models list` shows. Not created here."""
    return data_dir() / "models"


def state_dir() -> Path:
    """Where what must outlive a process goes: `$XDG_STATE_HOME/deepseek-r1`. Not created here."""
    return _xdg("XDG_STATE_HOME", ".local/state") / _APP


def log_dir() -> Path:
    """Where log files go. Not created here."""
    return state_dir() / "logs"


def hub_cache_dir() -> Path:
    """Where `huggingface_hub` keeps what it fetched, by that library's own rules."""
    if path := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(path).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _xdg("XDG_CACHE_HOME", ".cache") / "huggingface") / "hub"


def runtime_dir() -> Path:
    """A folder for sockets, made on demand, that only this user can enter (mode 0700).

    `$XDG_RUNTIME_DIR/deepseek-r1`, else a folder in the temporary directory. Raises `ConfigError` when somebody else
    owns that folder.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = os.path.isabs(base) and os.access(base, os.W_OK)
    path = Path(base) / _APP if usable else Path(tempfile.gettempdir()) / f"{_APP}-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to somebody else", remedy="set XDG_RUNTIME_DIR to a folder of your own")
    path.chmod(0o700)
    return path


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / fallback  # the XDG rules ignore relative paths


def memory_total(root: Path = _ROOT) -> int:
    """Bytes of memory this process may ever use: the machine's, or the tightest container limit below that."""
    return min([_meminfo(root)["MemTotal"], *(limit for limit, _ in _memory_limits(root))])


def memory_available(root: Path = _ROOT) -> int:
    """Bytes this process can take now without swapping, within its container's limits; page cache counts as free."""
    free = [max(0, limit - used) for limit, used in _memory_limits(root)]
    return min([_meminfo(root)["MemAvailable"], *free])


def process_pss(pid: int, root: Path = _ROOT) -> int:
    """Proportional set size of a process in bytes (shared pages split among their users). `OSError` if it is gone."""
    text = (root / f"proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _meminfo(root: Path) -> dict[str, int]:
    lines = (root / "proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cgroups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(cgroup version, folder) of every group above this process that can limit `controller`, innermost first."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version, mount = (1, base / controller) if controllers else (2, base)
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):  # the last parent is the mount itself
            if (mount / folder).is_dir():
                yield version, mount / folder


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that can't be reclaimed) of every group above this process that has a limit."""
    for version, folder in _cgroups(root, "memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit = _number(folder / names[0])
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _number(folder / names[1]) or 0
        try:
            fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            fields = {}
        yield limit, max(0, used - int(fields.get(names[2], 0)))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # no such file, or the word "max"


def cpu_count(root: Path = _ROOT) -> int:
    """Processors this process can keep busy: its affinity, or a container's quota (rounded up) below that."""
    counts = [len(os.sched_getaffinity(0))]
    for version, folder in _cgroups(root, "cpu"):
        if version == 1:
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        else:
            try:
                words = (folder / "cpu.max").read_text().split()
            except OSError:
                continue
            quota, period = (None, None) if words[0] == "max" else (int(words[0]), int(words[1]))
        if quota and period and quota > 0:
            counts.append(max(1, math.ceil(quota / period)))
    return min(counts)


def cpu_model(root: Path = _ROOT) -> str:
    """The processor's name as the kernel gives it, else the architecture's name."""
    return _cpuinfo(root).get("model name") or os.uname().machine


def cpu_features(root: Path = _ROOT) -> frozenset[str]:
    """All instruction-set flags of the processor, as the kernel names them."""
    info = _cpuinfo(root)
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's fields."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def disk_free(path: str | Path) -> int:
    """Bytes this user can still write where `path` is, or will be: its nearest existing parent is asked."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def machine_summary() -> dict[str, Any]:
    """The machine as reports describe it: processor, memory, system, Python. No name of the host or the user."""
    features = cpu_features()
    system = os.uname()
    return {
        "cpu": cpu_model(),
        "cpu_count": cpu_count(),
        "cpu_features": [name for name in INFERENCE_FEATURES if name in features],
        "memory_total": memory_total(),
        "memory_available": memory_available(),
        "system": f"{system.sysname} {system.release} {system.machine}",
        "python": python_version(),
    }


def python_version() -> str:
    """The running interpreter's version, as "3.11.7"."""
    return ".".join(map(str, sys.version_info[:3]))


def package_versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is absent. Imports none of them."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
