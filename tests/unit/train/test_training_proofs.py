from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import proof_training
from proof_steps import state_file
from support import small_runs
from support.small_model import small_model


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_rollouts_go_on_with_the_precision_at_which_they_were_stopped(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(small_model(models_folder))
    monkeypatch.setattr(proof_training, "PRECISIONS", ("fp32", "int4"))

    def stop(done: float, words: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proof_training.rollouts(1200, 2, "abc", stop, model=model)
    first = json.loads(state_file("rollouts").read_text())["precisions"]
    assert list(first) == ["fp32"]
    for phase in ("before", "after"):
        found = first["fp32"][phase]
        assert found["tokens"] >= 600 and found["compared"] == 3 * found["tokens"]
        assert found["worst"] == 0.0 and found["differing"] == 0 and max(found["largest_batch"]) > 1
    started: list[str] = []

    def run(kind: str, model: str, precision: str, *words: str) -> str:
        started.append(f"{kind} {precision}")
        return json.dumps(first["fp32"])

    monkeypatch.setattr(proof_training, "_run", run)
    result, passed = proof_training.rollouts(1200, 2, "abc", lambda done, words: None, model=model)
    assert passed and started == ["sample int4", "check int4"] and result["precisions"]["fp32"] == first["fp32"]
    assert not state_file("rollouts").exists()


@pytest.mark.parametrize("change", [{"worst": 1e-16}, {"differing": 1}, {"hits": [0]}, {"tokens": 4}])
def test_a_difference_is_no_proof(change: dict[str, object]) -> None:
    phase = {"worst": 0.0, "differing": 0, "hits": [0, 3], "tokens": 5}
    found = {"before": phase, "after": phase, "update_is_felt": True}
    assert proof_training._same(found, 10)
    assert not proof_training._same(found | {"after": phase | change}, 10)
    assert not proof_training._same(found | {"update_is_felt": False}, 10)


def test_kills_go_on_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs are counted, an interrupted proof goes on with the next one, and one other outcome is no proof."""
    killed: list[str] = []

    def killed_run(given: object, out: Path, draw: random.Random, *, early: float) -> int:
        killed.append(out.name)
        return 3

    monkeypatch.setattr(small_runs, "killed_run", killed_run)
    monkeypatch.setattr(small_runs, "outcome", lambda out: ("whole" if out.name != odd else "other", []))
    monkeypatch.setattr(proof_training.subprocess, "run", lambda *words, **options: None)

    def stop(done: float, words: str) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    odd = ""
    with pytest.raises(KeyboardInterrupt):
        proof_training.kills(10, 4, "abc", stop)
    result, passed = proof_training.kills(10, 4, "abc", lambda done, words: None)
    assert passed and result["kills"] == 12 and killed == ["0", "1", "2", "3"]
    assert [run["kind"] for run in result["runs"]] == [*proof_training.KILLED_KINDS, proof_training.KILLED_KINDS[0]]
    assert not state_file("kills").exists()
    odd = "3"
    result, passed = proof_training.kills(10, 4, "abc", lambda done, words: None)
    assert not passed and result["differing"] == [3]
