from __future__ import annotations

import io
import logging
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_r1.core import environment
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.core.logging import configure_logging

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {12 * GIB // 1024} kB\n"}


def test_memory_of_a_plain_machine(tmp_path: Path) -> None:
    root = write(tmp_path, {**MEMINFO, "proc/self/cgroup": "0::/user.slice\n", "sys/fs/cgroup/x": ""})
    assert environment.memory_total(root) == 16 * GIB
    assert environment.memory_available(root) == 12 * GIB


def test_memory_without_cgroups(tmp_path: Path) -> None:
    root = write(tmp_path, MEMINFO)
    assert environment.memory_total(root) == 16 * GIB


def test_memory_within_cgroup_v2(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/outer"
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/outer/inner\n",
            f"{group}/inner/memory.max": "max\n",
            f"{group}/inner/memory.current": "123\n",
            f"{group}/memory.max": f"{4 * GIB}\n",
            f"{group}/memory.current": f"{3 * GIB}\n",
            f"{group}/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
        },
    )
    assert environment.memory_total(root) == 4 * GIB
    assert environment.memory_available(root) == 4 * GIB - (3 * GIB - GIB)  # page cache can be given back


def test_memory_within_cgroup_v1(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/a\n0::/\n",
            f"{base}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{base}/memory.usage_in_bytes": "1\n",
            f"{base}/a/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{base}/a/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{base}/a/memory.stat": "total_inactive_file 0\n",
        },
    )
    assert environment.memory_total(root) == 2 * GIB
    assert environment.memory_available(root) == 0


def test_a_group_seen_from_inside_its_own_mount(tmp_path: Path) -> None:
    """In a container the named folder may not exist; the mount's root is then the container's own group."""
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/docker/abc\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    assert environment.memory_total(root) == environment.memory_available(root) == GIB


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cpu_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert environment.cpu_count(write(tmp_path, files)) == count


def test_cpu_of_x86_and_arm(tmp_path: Path) -> None:
    x86 = write(
        tmp_path / "x86",
        {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: sse avx2 fma\n\nflags\t: no\n"},
    )
    assert environment.cpu_model(x86) == "Fast One"
    assert environment.cpu_features(x86) == {"sse", "avx2", "fma"}
    arm = write(tmp_path / "arm", {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n"})
    assert environment.cpu_model(arm) == os.uname().machine
    assert environment.cpu_features(arm) == {"fp", "asimd", "bf16"}
    assert environment.cpu_features(tmp_path / "nothing") == frozenset()


def test_pss_counts_what_is_touched() -> None:
    for thread in threading.enumerate():  # an engine of another test may still be making room
        if thread.name == "populate":
            thread.join()
    before = environment.process_pss(os.getpid())
    # A mapping of its own: a large process may hold freed memory that anything else would be given again.
    block = mmap.mmap(-1, 64 << 20)
    block.write(b"\x01" * (64 << 20))
    grown = environment.process_pss(os.getpid()) - before
    assert 60 << 20 <= grown <= 80 << 20
    assert len(block) == 64 << 20


def test_pss_of_a_process_that_is_gone() -> None:
    with pytest.raises(OSError):
        environment.process_pss(2**22 + 1)


def test_xdg_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "XDG_CACHE_HOME",
        "XDG_STATE_HOME",
        "XDG_DATA_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    assert environment.cache_dir() == tmp_path / ".cache/deepseek-r1"
    assert environment.log_dir() == tmp_path / ".local/state/deepseek-r1/logs"
    assert environment.models_dir() == tmp_path / ".local/share/deepseek-r1/models"
    assert environment.hub_cache_dir() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert environment.cache_dir() == tmp_path / ".cache/deepseek-r1"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/other")
    assert environment.cache_dir() == Path("/var/other/deepseek-r1")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert environment.hub_cache_dir() == Path("/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert environment.hub_cache_dir() == Path("/hub")


def test_the_runtime_folder_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "deepseek-r1").mkdir(mode=0o755)
    path = environment.runtime_dir()
    assert path == tmp_path / "deepseek-r1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert environment.runtime_dir() == tmp_path / f"deepseek-r1-{os.getuid()}"


def test_a_runtime_folder_that_is_a_link_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "deepseek-r1").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        environment.runtime_dir()


def test_disk_free_asks_the_nearest_parent(tmp_path: Path) -> None:
    assert environment.disk_free(tmp_path / "not/yet/there") == pytest.approx(environment.disk_free(tmp_path), rel=0.1)


def test_the_summary_names_no_host() -> None:
    summary = environment.machine_summary()
    assert summary["cpu_count"] == environment.cpu_count()
    assert 0 < summary["memory_available"] <= summary["memory_total"]
    assert os.uname().nodename not in str({name: value for name, value in summary.items() if name != "cpu"})


def test_versions_of_packages() -> None:
    versions = environment.package_versions(("pytest", "no-such-package-here"))
    assert versions == {"pytest": pytest.__version__, "no-such-package-here": None}


@pytest.fixture
def restored_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("deepseek_r1")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers.clear()
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_logging(restored_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEEPSEEK_R1_LOG_LEVEL", raising=False)
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    file = tmp_path / "logs/serve.log"
    configure_logging("warning")
    configure_logging("INFO", file=file)
    logging.getLogger("deepseek_r1.serve.app").info("ready at %s", "here")
    logging.getLogger("deepseek_r1.serve.app").debug("not shown")
    line = stderr.getvalue()
    assert line.endswith(" I serve.app: ready at here\n") and line.count("\n") == 1
    assert "INFO serve.app: ready at here" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("DEEPSEEK_R1_LOG_LEVEL", "error")
    configure_logging("DEBUG")
    assert restored_logger.level == logging.ERROR
    assert len(restored_logger.handlers) == 1


def test_logging_refuses(restored_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEEPSEEK_R1_LOG_LEVEL", raising=False)
    with pytest.raises(ConfigError, match="unknown log level 'LOUD'"):
        configure_logging("loud")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        configure_logging("INFO", file=tmp_path / "file/under/a/file.log")
