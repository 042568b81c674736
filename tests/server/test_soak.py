"""The soak at a length for every day. `make prove` runs it for minutes."""

from __future__ import annotations

import math

import pytest
from soak import Plan, run, violations
from soak_watch import fit_slope

PLAN = Plan(seconds=20, streams=16, memory=736 << 20, max_concurrent=4, max_queue=16, seed=7, slope=0.6)
"""In so short a time the pool is touched for the first time: it is kept small, so that this ends in time (and could not
make up the slope that is allowed if it didn't). The bound has no slack."""


@pytest.mark.timeout(420)
def test_soak_and_flood() -> None:
    report = run(PLAN)
    assert report["violations"] == [], report
    assert report["error_count"] == 0 and report["completed"] >= PLAN.streams // 2
    assert report["kv_blocks_left"] == 0 == report["kv_blocks_left_after_flood"]
    assert report["pss_peak_mib"] * 2**20 <= PLAN.memory
    assert report["flood"]["requests"] == 160 == sum(report["flood"]["answers"].values())
    assert 20 <= report["flood"]["answers"]["200"]
    assert report["same_afterwards"], "the same request gives the same text before and after"


def test_the_slope_is_that_of_a_line() -> None:
    wobbling = [(float(second), 1e9 + 2e6 * second + 1e5 * math.sin(second)) for second in range(100)]
    assert fit_slope(wobbling) == pytest.approx(2e6, rel=0.01)
    assert fit_slope(wobbling[:2]) == 0.0


def test_each_violation_is_found() -> None:
    """A report that is as it should be has none; each wrong number is one."""
    good = {
        "error_count": 0,
        "completed": 100,
        "disconnected_when": {"streaming": 9},
        "kv_blocks_left": 0,
        "kv_blocks_left_after_flood": 0,
        "pss_peak_mib": 650,
        "pss_slope_share_per_minute": 0.001,
        "engine_restarts": 0,
        "running_peak": 4,
        "waiting_peak": 12,
        "repeated": {"sent": 20, "differing": 0},
        "ready_after_flood": 200,
        "flood": {"answers": {"200": 20, "429": 140}, "wrong": []},
        "server_errors": 0,
    }
    assert violations(good, PLAN, in_half_samples=10) == []
    assert len(violations(good, PLAN, in_half_samples=1)) == 1
    for wrong in (
        {"error_count": 1},
        {"completed": 7},
        {"disconnected_when": {"waiting": 3}},
        {"kv_blocks_left": 1},
        {"kv_blocks_left_after_flood": 1},
        {"pss_peak_mib": 737},
        {"pss_slope_share_per_minute": 0.7},
        {"engine_restarts": 1},
        {"running_peak": 5},
        {"running_peak": 3},
        {"waiting_peak": 0},
        {"repeated": {"sent": 20, "differing": 1}},
        {"ready_after_flood": 503},
        {"flood": {"answers": {"200": 19, "429": 141}, "wrong": []}},
        {"flood": {"answers": {"200": 20, "429": 139, "500": 1}, "wrong": []}},
        {"flood": {"answers": {"200": 160}, "wrong": []}},
        {"flood": {"answers": {"200": 20, "429": 140}, "wrong": ["Retry-After is ''"]}},
        {"server_errors": 1},
    ):
        assert violations({**good, **wrong}, PLAN, in_half_samples=10), wrong
