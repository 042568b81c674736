from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import proof_steps
import prove
from proof_progress import json_lines


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Two steps in place of the real ones, one of which fails; the counts they were run with."""
    runs: list[int] = []

    def step(passes: bool) -> prove.Step:
        def run(count: int, seed: int, code: str, progress: Any) -> tuple[dict[str, Any], bool]:
            runs.append(count)
            progress(count, "done")
            return {"seed_seen": seed}, passes

        return prove.Step(run, 7, "things", "a claim")

    monkeypatch.setattr(prove, "STEPS", {"good": step(True), "bad": step(False)})
    monkeypatch.setattr(prove, "is_dirty", lambda: False)
    monkeypatch.setattr(prove, "code_digest", lambda: "abc")
    return runs


def call(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["prove.py", "--out", str(out), *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return prove.main()


def test_a_proof_says_what_was_shown_where(
    counting: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert call(monkeypatch, tmp_path, "good", "--seed", "5") == 0
    proof = json.loads((tmp_path / "good.json").read_text())
    assert proof["passed"] is True and proof["dirty"] is False
    assert (proof["name"], proof["seed"], proof["count"], proof["code"]) == ("good", 5, 7, "abc")
    assert proof["result"] == {"seed_seen": 5}
    assert proof["machine"]["cpu_count"] >= 1 and proof["versions"]["numpy"]
    assert len(proof["commit"] or "0" * 40) == 40
    assert [file.name for file in tmp_path.iterdir()] == ["good.json"], "nothing else is left"


def test_what_is_proven_is_left_out_and_what_failed_is_not(
    counting: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert call(monkeypatch, tmp_path) == 1
    assert counting == [7, 7]
    assert call(monkeypatch, tmp_path) == 1
    assert counting == [7, 7, 7], "only the one that failed runs again"
    assert call(monkeypatch, tmp_path, "good", "--again") == 0
    assert call(monkeypatch, tmp_path, "good", "--count", "3") == 0
    assert counting[3:] == [7, 3]
    assert call(monkeypatch, tmp_path, "good") == 0
    assert counting[5:] == [7], "a proof of fewer is no proof of all"
    assert call(monkeypatch, tmp_path, "good", "--seed", "2") == 0
    monkeypatch.setattr(prove, "code_digest", lambda: "changed")
    assert call(monkeypatch, tmp_path, "good", "--seed", "2") == 0
    assert counting[6:] == [7, 7]


def test_a_proof_of_uncommitted_code_is_made_again_once_it_is_committed(
    counting: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prove, "is_dirty", lambda: True)
    assert call(monkeypatch, tmp_path, "good") == call(monkeypatch, tmp_path, "good") == 0
    assert counting == [7]
    monkeypatch.setattr(prove, "is_dirty", lambda: False)
    assert call(monkeypatch, tmp_path, "good") == 0
    assert counting == [7, 7]


def test_schedules_go_on_where_they_were_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def stop(done: float, words: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proof_steps.schedules(9, 3, "abc", stop)
    assert json.loads(proof_steps.state_file("schedules").read_text())["done"] == 4
    seen: list[float] = []
    resumed, _ = proof_steps.schedules(9, 3, "abc", lambda done, words: seen.append(done))
    assert seen == [5, 6, 7, 8, 9]
    assert not proof_steps.state_file("schedules").exists()
    whole, _ = proof_steps.schedules(9, 3, "abc", lambda done, words: None)
    assert resumed == whole
    assert whole["done"] == 9 and whole["tokens"] > 100


def test_json_lines_are_few_and_know_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, *(0.5 * tick for tick in range(101))])
    show = json_lines("soak", 200, "s", clock=lambda: next(now))
    for done in range(100, 201):  # an earlier run did the first hundred
        show(done, "words")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 11
    assert lines[1] == {
        "step": "soak", "done": 110, "total": 200, "unit": "s", "rate": 2.0, "eta_seconds": 45.0, "words": "words",
    }  # fmt: skip
    assert lines[-1]["done"] == 200 and lines[-1]["eta_seconds"] is None
