"""The check-up of a machine: what is there, what is missing, and how to mend it. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepseek_r1.config.precision import PRECISION_MODES
from deepseek_r1.core import environment
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.core.version import __version__
from deepseek_r1.kernels.built import SWITCH, native_kernels
from deepseek_r1.models.locate import locate_model

REQUIRED_PACKAGES = (
    *("fastapi", "httptools", "huggingface-hub", "jinja2", "msgspec", "numpy", "prometheus-client", "pyyaml"),
    *("pyzmq", "rich", "tokenizers", "torch", "uvicorn", "uvloop"),
)
"""The distributions that serving needs."""

_LOW_MEMORY = 1 << 30
_LOW_DISK = 2 << 30

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the report. "warn" limits something, "missing" means that serving can't work without it."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def run_checks(port: int) -> list[Check]:
    """All checks, in the order they are shown. `port` is the one that should be free on 127.0.0.1."""
    return [
        check_python(),
        Check("deepseek_r1", "ok", __version__),
        *check_packages(REQUIRED_PACKAGES),
        check_torch_build(),
        check_cpu(),
        check_kernels(),
        check_memory(),
        check_bandwidth(),
        *check_folders(),
        check_packed_weights(),
        check_default_model(),
        check_port(port),
        check_program("compiler", ("c++", "g++", "clang++"), "builds native code", "apt-get install g++"),
        check_program(
            "chromium",
            ("chromium", "chromium-browser", "google-chrome"),
            "drives the tests of the chat page",
            "apt-get install chromium",
        ),
    ]


def check_python() -> Check:
    """The interpreter's version."""
    version = environment.python_version()
    tested = sys.version_info[:2] == (3, 11)
    return Check("python", "ok", version if tested else f"{version} (3.11 is what is tested)")


def check_packages(names: tuple[str, ...]) -> Iterator[Check]:
    """Installed versions: one line for all that are there, one for each that is not."""
    versions = environment.package_versions(names)
    present = [f"{name} {version}" for name, version in versions.items() if version]
    if present:
        yield Check("packages", "ok", ", ".join(present))
    for name, version in versions.items():
        if version is None:
            yield Check(name, "missing", "not installed", f"python -m pip install {name}")


def check_torch_build(package: str = "torch") -> Check:
    """Whether torch is built for CPUs or for CUDA, read from its version file without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return Check("torch build", "missing", "torch is not installed", "python -m pip install torch")
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        text = ""
    version = re.search(r"^__version__ = '([^']*)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=]*= '([^']*)'", text, re.MULTILINE)
    built = f"for CUDA {cuda[1]}" if cuda else "for CPUs"
    return Check("torch build", "ok", f"{version[1] if version else 'unknown version'}, {built}")


def check_cpu() -> Check:
    """The processor, how many of its cores this process may use, and the flags that matter."""
    flags = environment.cpu_features()
    known = [name for name in environment.INFERENCE_FEATURES if name in flags]
    detail = f"{environment.cpu_model()}, {environment.cpu_count()} cores, {' '.join(known) or 'no vector flags known'}"
    if not flags & {"avx2", "asimd"}:
        return Check("cpu", "warn", detail, "expect slow answers: use a machine with AVX2 or NEON")
    return Check("cpu", "ok", detail)


def check_kernels(built: Callable[[], bool] = native_kernels) -> Check:
    """Whether weights in 8 and 4 bits are computed with as such, or held as float32 by torch."""
    if built():
        return Check("kernels", "ok", "native; precisions: " + ", ".join(PRECISION_MODES))
    mend = "install a C++20 compiler (Debian: apt-get install g++) and this package again"
    if os.environ.get(SWITCH) == "torch":
        mend = f"unset {SWITCH}"
    return Check("kernels", "warn", "torch alone: weights in int8 and int4 take the memory of fp32", mend)


def check_packed_weights() -> Check:
    """The packed weights that are kept for quick starts, and the room they have."""
    try:
        from deepseek_r1.models import cache_files
    except ImportError:
        return Check("packed weights", "warn", "not looked at: numpy is not installed", "python -m pip install numpy")
    try:
        most, kept = cache_files.limit(), [entry.nbytes for entry in cache_files.entries()]
    except DeepSeekError as error:
        return Check("packed weights", "warn", error.message, error.remedy)
    detail = f"{len(kept)} in {cache_files.folder()}, {_gib(sum(kept))} of at most {_gib(most)}"
    if most == 0:
        return Check(
            "packed weights", "warn", "none are kept: every start packs anew", f"unset {cache_files.LIMIT_VARIABLE}"
        )
    return Check("packed weights", "ok", detail)


def check_memory(available: Callable[[], int] = environment.memory_available) -> Check:
    """Memory in total and free, within the container's limits."""
    free = available()
    detail = f"{_gib(free)} available of {_gib(environment.memory_total())}"
    if free < _LOW_MEMORY:
        return Check("memory", "warn", detail, "close other programs, or use --precision int4 and a small --memory")
    return Check("memory", "ok", detail)


def check_bandwidth() -> Check:
    """The rate at which memory is copied: decoding reads all weights once per step, so this bounds its speed."""
    try:
        rate = copy_bandwidth()
    except ImportError:
        return Check("bandwidth", "warn", "not measured: numpy is not installed", "python -m pip install numpy")
    return Check("bandwidth", "ok", f"{rate / 1e9:.1f} GB/s (memory copied by all cores, bytes read plus written)")


def copy_bandwidth(seconds: float = 0.25) -> float:
    """Bytes per second (read plus written) when every core copies its own buffers for about `seconds`."""
    import numpy as np

    threads = environment.cpu_count()
    # Far beyond a core's share of any cache, within an eighth of what is free.
    size = max(1 << 20, min(64 << 20, environment.memory_available() // (16 * threads)))
    # Filled, so that no page is first touched inside the timed part.
    buffers = [(np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)) for _ in range(threads)]
    copied = [0] * threads
    gate = threading.Barrier(threads + 1)
    spent = [0.0] * threads

    def work(index: int) -> None:
        source, target = buffers[index]
        gate.wait()
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            np.copyto(target, source)  # numpy lets go of the interpreter's lock while it copies
            copied[index] += 2 * size
        spent[index] = passed

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    for worker in workers:
        worker.join()
    return sum(copied) / max(spent)


def check_folders() -> Iterator[Check]:
    """The folders of logs, caches and models: where they are and whether they can be written; then the disk's room."""
    folders = {
        "logs": environment.log_dir(),
        "cache": environment.cache_dir(),
        "models": environment.models_dir(),
        "hub cache": environment.hub_cache_dir(),
    }
    for name, path in folders.items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            yield Check(name, "ok", str(path))
        else:
            yield Check(name, "warn", f"{path} cannot be written", "give yourself that folder, or set XDG_* elsewhere")
    free = environment.disk_free(folders["hub cache"])
    if free < _LOW_DISK:
        yield Check("disk", "warn", f"{_gib(free)} free for models", "free some space, or set HF_HOME to a larger disk")
    else:
        yield Check("disk", "ok", f"{_gib(free)} free for models")


def check_default_model(locate: Callable[[str], Path] = locate_model) -> Check:
    """The embedded model's file, its checksum verified."""
    try:
        path = locate("default")
    except DeepSeekError as error:
        return Check("default model", "missing", error.message, error.remedy)
    return Check("default model", "ok", f"{path} (sha256 as expected)")


def check_port(port: int) -> Check:
    """Whether the server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                f"port {port}", "warn", error.strerror or str(error), "stop what uses it, or serve on --port 0"
            )
    return Check(f"port {port}", "ok", "free")


def check_program(name: str, commands: tuple[str, ...], purpose: str, mend: str) -> Check:
    """An optional program: the first of `commands` that is installed."""
    for command in commands:
        if path := shutil.which(command):
            return Check(name, "ok", path)
    return Check(name, "warn", f"not found; optional, it {purpose}", mend)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
