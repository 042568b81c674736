from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.cli.main import benchmark_main
from deepseek_r1.operate import limits
from deepseek_r1.operate.compare import peers, process, rounds
from deepseek_r1.operate.compare.cases import parse_cases, prompts
from deepseek_r1.operate.compare.peers import Kind, Peer
from deepseek_r1.operate.compare.process import Worker, WorkerError
from support import fake_peer

SUPPORT = Path(fake_peer.__file__).parent


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


def fake(label: str = "fake", **flags: str) -> Peer:
    return Peer(label, Path(sys.executable), "fake_peer", "some/model", {"name": label, **flags})


def stopped(worker: Worker) -> bool:
    """Whether the kernel stops the process within a second: signals arrive a little later."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.005)
    return False


def test_a_worker_answers_with_tokens_and_their_times() -> None:
    with Worker(fake(pace="0.02")) as worker:
        about = worker.load(3)
        assert about["versions"] == {"fake": "1.2"} and about["threads"] == 3 and about["model"] == "some/model"
        answer = worker.run([[1, 2, 3], [4, 5, 6]], 3)
    assert answer["tokens"] == [[6, 13, 20], [15, 22, 29]]
    for times in answer["seconds"]:
        assert times[0] >= 0.02 and times[1] - times[0] >= 0.02 and times[2] < 1
    assert worker._process.returncode == 0


def test_the_untimed_step_comes_first_and_only_where_it_is_wanted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(fake(log=str(log))) as worker:
        worker.load(1)
        worker.run([list(range(100, 140))], 5, warm=False)
        worker.run([list(range(100, 140))], 5)
    lines = [line.split()[1:] for line in log.read_text().splitlines()]
    assert lines == [["1", "40", "5", "100"], ["1", "8", "2", "139"], ["1", "40", "5", "100"]]


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("run", "fake can't run: ValueError: no such kernel"),
        ("die", "fake ended while it should run"),
        ("short", r"3 tokens were asked for, and \[2\] came"),
    ],
)
def test_workers_that_fail(fail: str, message: str) -> None:
    with Worker(fake(fail=fail)) as worker:
        worker.load(1)
        with pytest.raises(WorkerError, match=message):
            worker.run([[1, 2]], 3)


def test_what_a_worker_printed_is_in_the_error() -> None:
    with Worker(fake(fail="load")) as worker, pytest.raises(WorkerError, match="OSError: no model at") as failed:
        worker.load(1)
    assert "the file is not mine" in failed.value.remedy


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "RUN_SECONDS", 0.3)
    monkeypatch.setattr(process, "STOP_SECONDS", 0.3)
    with Worker(fake(fail="hang")) as worker:
        worker.load(1)
        with pytest.raises(WorkerError, match="did not run in time"):
            worker.run([[1]], 1)
    assert worker._process.returncode == -signal.SIGKILL


def test_an_interpreter_that_is_none() -> None:
    with pytest.raises(WorkerError, match="can't be started"):
        Worker(Peer("x", Path("/nowhere/python"), "fake_peer", "", {}))


def test_a_worker_runs_in_its_turns_only() -> None:
    with Worker(fake()) as worker:
        with worker.turn():
            worker.load(1)
        assert stopped(worker)
        with worker.turn():
            assert worker.run([[1]], 1)["tokens"] == [[1]]
        assert stopped(worker)


def test_workers_end_with_their_driver() -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from deepseek_r1.operate.compare.process import Worker\n"
        "from deepseek_r1.operate.compare.peers import Peer\n"
        "worker = Worker(Peer('x', Path(sys.executable), 'fake_peer', '', {}))\n"
        "with worker.turn(): worker.load(1)\n"
        "print(worker._process.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        driver.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# --- rounds -----------------------------------------------------------------------------------------------------------


def compared(engines: list[Peer], cases: str, count: int = 3) -> rounds.Outcome:
    probes = iter(range(1, 10_000))
    return rounds.compare(
        engines,
        parse_cases(cases),
        rounds=count,
        seed=5,
        vocab_size=5000,
        threads=1,
        bandwidth=lambda: float(next(probes)),
        say=lambda *words, **fields: None,
    )


def test_rounds_interleave_and_who_begins_goes_round(tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ("ours", "a", "b")
    outcome = compared([fake(name, log=str(log)) for name in names], "prefill:30,2:4")
    timed = [line.split() for line in log.read_text().splitlines() if line.split()[2:4] != ["8", "2"]]
    order = [(name, tokens) for name, _, tokens, _, _ in timed]
    wanted = []
    for turn in range(4):
        for tokens in ("30", "16"):
            wanted += [(name, tokens) for name in (*names[turn % 3 :], *names[: turn % 3])]
    assert order == wanted
    drawn = [first for name, _, tokens, _, first in timed if tokens == "30"]
    wanted_first = [str(prompts(parse_cases("prefill:30")[0], 5, turn, 5000)[0][0]) for turn in range(4)]
    assert drawn == [first for first in wanted_first for _ in names]

    assert {key: len(turns) for key, turns in outcome.turns.items()} == {
        (case, name): 3 for case in ("prefill", "2") for name in names
    }
    assert [turn.round for turn in outcome.turns["2", "a"]] == [0, 1, 2]
    assert all(turn.agreement == 1 for turns in outcome.turns.values() for turn in turns)
    # A probe before each of the 24 turns, those that warm up included.
    assert sorted(turn.bandwidth for turns in outcome.turns.values() for turn in turns) == list(range(7, 25))
    assert set(outcome.about) == set(names) and outcome.failed == {}


def test_a_peer_that_fails_is_left_out_and_named() -> None:
    broken, worn = fake("broken", fail="load"), fake("worn", fail="later")
    outcome = compared([fake("ours"), broken, worn], "decode:3")
    assert set(outcome.failed) == {"broken", "worn"}
    assert "no model at" in outcome.failed["broken"] and "worn out" in outcome.failed["worn"]
    assert len(outcome.turns["decode", "ours"]) == 3
    assert len(outcome.turns["decode", "worn"]) == 1  # two runs a turn: the third turn is the one that fails
    with pytest.raises(WorkerError, match="no such kernel"):
        compared([fake("ours", fail="run")], "decode:3")


def test_a_cold_start_counts_from_before_the_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = compared([fake("ours", log=str(log), pace="0.05"), fake("broken", fail="load")], "cold:2")
    turns = outcome.turns["cold", "ours"]
    assert len(turns) == 2 and len(log.read_text().splitlines()) == 3  # no untimed step: the first token is the first
    # An interpreter can't start in less than the pace and a few milliseconds.
    assert all(0.055 < turn.figures["first_token_seconds"] < 5 for turn in turns)
    assert set(outcome.failed) == {"broken"}


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of peers with one that is a fake, a model that is a config.json, and a fake in our own place."""
    (tmp_path / "fake/bin").mkdir(parents=True)
    (tmp_path / "fake/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "fake/bin/python").chmod(0o755)
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.01)
    monkeypatch.setitem(peers.KINDS, "fake", Kind("fake_peer", "fake"))
    monkeypatch.setattr(peers, "ours", lambda *settings: fake(f"deepseek_r1 {settings[1]}", pace="0.001"))
    model = tmp_path / "model"
    model.mkdir()
    shape = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **shape, **heads}))
    return tmp_path


def run(environment: Path, words: str) -> int:
    common = f"{environment}/model --precision bf16 --peers-dir {environment} --rounds 2 --cases decode:4,2:3"
    return benchmark_main([*common.split(), *words.split()])


def test_the_comparison_from_the_command_line(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(environment, f"--compare fake:pace=0.002 --json {environment}/r.json --chart {environment}/r.svg")
    output = capsys.readouterr()
    assert code == 0, output.err
    report: dict[str, Any] = json.loads((environment / "r.json").read_text())
    assert report["kind"] == "deepseek-benchmark --compare" and report["settings"]["rounds"] == 2
    assert [case["name"] for case in report["cases"]] == ["decode", "2"]
    _, theirs = report["cases"][0]["rows"]
    assert theirs["ratio"]["count"] == 2 and theirs["ratio"]["min"] > 1 and theirs["agreement"]["median"] == 1
    assert theirs["bandwidth"]["min"] > 1e8
    assert (environment / "r.svg").read_text().startswith("<svg")
    lines = output.out.splitlines()
    assert lines[2].split()[:4] == ["decode,", "alone", "deepseek_r1", "bf16"] and "fake pace=0.002" in lines[3]
    assert "fake 1.2" in output.out


def test_a_peer_that_fails_fails_the_command(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(environment, "--compare fake:fail=run") == 1
    assert "failed: fake fail=run: fake fail=run can't run: ValueError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--compare fake --url http://127.0.0.1:1", "process of its own"),
        ("--chart x.svg", "add --compare"),
        ("--compare vllm", "vllm is not installed"),
        ("--compare fake --chart nowhere/x.svg", "its folder does not exist"),
        ("--compare fake:int9", "there is no"),
    ],
)
def test_what_can_not_be_compared(
    environment: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(environment, words) != 0
    error = capsys.readouterr().err
    assert message in error and "mend:" in error and "Traceback" not in error
    assert os.listdir(environment / "model") == ["config.json"]
