from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError
from deepseek_r1.operate import doctor

ROOT = Path(__file__).parents[2]


def test_the_packages_checked_are_those_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=;\s\[]", dependency, maxsplit=1)[0] for dependency in project["dependencies"]]
    assert sorted(doctor.REQUIRED_PACKAGES) == sorted(names)


def test_missing_packages_are_named_with_their_mend() -> None:
    present, missing = doctor.check_packages(("pytest", "no-such-package-here"))
    assert (present.status, present.detail) == ("ok", f"pytest {pytest.__version__}")
    assert (missing.name, missing.status) == ("no-such-package-here", "missing")
    assert missing.mend == "python -m pip install no-such-package-here"


@pytest.mark.parametrize(("cuda", "words"), [("None", "9.9.9, for CPUs"), ("'12.8'", "9.9.9, for CUDA 12.8")])
def test_torch_build_is_read_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str, words: str
) -> None:
    package = tmp_path / "fake_torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "version.py").write_text(f"__version__ = '9.9.9'\ncuda: Optional[str] = {cuda}\nhip = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor.check_torch_build("fake_torch")
    assert (check.status, check.detail) == ("ok", words)
    assert doctor.check_torch_build("no_such_torch").status == "missing"


def test_a_busy_port_is_a_warning() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        check = doctor.check_port(port)
        assert (check.name, check.status, check.detail) == (f"port {port}", "warn", "Address already in use")
        assert check.mend
    assert doctor.check_port(port).status == "ok"


def test_little_memory_is_a_warning() -> None:
    assert doctor.check_memory(lambda: (1 << 30) - 1).status == "warn"
    check = doctor.check_memory(lambda: 3 << 30)
    assert check.status == "ok" and check.detail.startswith("3.0 GiB available of ")


def test_the_default_model_is_required() -> None:
    def absent(name: str) -> Path:
        raise ModelNotFoundError("it is not installed", remedy="install it")

    def damaged(name: str) -> Path:
        raise CheckpointError("/x.gguf", "sha256", "is 12, not 34")

    assert doctor.check_default_model(absent) == doctor.Check(
        "default model", "missing", "it is not installed", "install it"
    )
    assert doctor.check_default_model(damaged).status == "missing"
    assert doctor.check_default_model(lambda name: Path("/y.gguf")).detail == "/y.gguf (sha256 as expected)"


def test_optional_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = doctor.check_program("compiler", ("c++", "g++"), "builds", "apt-get install g++")
    assert (absent.status, absent.mend) == ("warn", "apt-get install g++")
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    found = doctor.check_program("compiler", ("c++", "g++"), "builds", "apt-get install g++")
    assert (found.status, found.detail) == ("ok", str(tmp_path / "g++"))


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file/below"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    checks = {check.name: check for check in doctor.check_folders()}
    assert checks["logs"].status == "warn" and "cannot be written" in checks["logs"].detail
    assert (checks["cache"].status, checks["cache"].detail) == ("ok", str(tmp_path / "new/deepseek-r1"))
    assert checks["disk"].detail.endswith("free for models")


def test_kernels_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_R1_KERNELS", raising=False)
    there, absent = doctor.check_kernels(lambda: True), doctor.check_kernels(lambda: False)
    assert there.status == "ok" and "int8, int4" in there.detail
    assert absent.status == "warn" and "memory of fp32" in absent.detail and "g++" in absent.mend
    monkeypatch.setenv("DEEPSEEK_R1_KERNELS", "torch")
    assert doctor.check_kernels().mend == "unset DEEPSEEK_R1_KERNELS"


def test_packed_weights_and_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "deepseek-r1/packed"
    folder.mkdir(parents=True)
    (folder / "x.packed").write_bytes(b"?" * (1 << 20))
    for limit, status, words in (("3GiB", "ok", f"1 in {folder}, 0.0 GiB of at most 3.0 GiB"), ("0", "warn", "none")):
        monkeypatch.setenv("DEEPSEEK_R1_CACHE_LIMIT", limit)
        check = doctor.check_packed_weights()
        assert check.status == status and check.detail.startswith(words)
    monkeypatch.setenv("DEEPSEEK_R1_CACHE_LIMIT", "lots")
    assert "DEEPSEEK_R1_CACHE_LIMIT" in doctor.check_packed_weights().detail


def test_bandwidth_is_that_of_memory() -> None:
    rate = doctor.copy_bandwidth(0.1)
    assert 1e8 < rate < 5e12  # between a very busy machine and any that is built


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("missing", 1)])
def test_exit_code_and_json(
    status: doctor.Status, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [doctor.Check("first", "ok", "fine"), doctor.Check("second", status, "so", "do this")]
    monkeypatch.setattr(doctor, "run_checks", lambda port: checks if port == 8123 else [])
    assert main(["doctor", "--port", "8123", "--json"]) == code
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "second",
        "status": status,
        "detail": "so",
        "mend": "do this",
    }
    assert main(["doctor", "--port", "8123"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "first", "fine"]
    assert lines[2].strip() == "mend: do this"


def test_all_checks_run_without_torch() -> None:
    code = (
        "import sys; from deepseek_r1.operate.doctor import run_checks; "
        "print(*(f'{c.name}={c.status}' for c in run_checks(8080)), sep='\\n'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False", done.stderr
    names = [line.split("=")[0] for line in lines[:-1]]
    expected = [
        "python",
        "torch build",
        "cpu",
        "memory",
        "bandwidth",
        "logs",
        "cache",
        "kernels",
        "packed weights",
        "disk",
        "default model",
        "port 8080",
    ]
    assert [name for name in expected if name not in names] == []
