"""A run's folder as a trainer leaves it, with texts that a page or a terminal must not take for its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from deepseek_r1.operate.runs.write import RunWriter

HOSTILE = "<script>alert(1)</script> ![x](http://evil.example/a.png) | `code` ``` \x1b[2J\u202e</pre>"


def metrics(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 4 * math.exp(-step / 20), "lr": 1e-5, "reward": step / 100, "seconds": 0.5}


def rollouts(step: int) -> list[dict[str, Any]]:
    """Four rollouts: rewards -1, 0, 1 and none, of two families."""
    return [
        {
            "step": step,
            "prompt": f"prompt of step {step}",
            "text": f"answer {choice} of step {step} {HOSTILE}",
            "reward": reward,
            "parts": {"correct": 1.0, HOSTILE: 0.5},
            "advantage": choice - 1.5,
            "tokens": 10 + choice,
            "finished": choice != 3,
            "family": "sums" if choice % 2 else "countdown",
            "level": 2,
            "error": HOSTILE if choice == 3 else None,
        }
        for choice, reward in enumerate((-1.0, 0.0, 1.0, None))
    ]


def write_run(folder: Path, steps: int = 60) -> RunWriter:
    writer = RunWriter(folder)
    writer.begin({"kind": "grpo", "model": "tiny", "steps": steps, "recipe": {"a": {"b": [1, 2]}, "note": HOSTILE}})
    for step in range(1, steps + 1):
        writer.step(metrics(step))
        writer.rollouts(rollouts(step))
    row = {"suite": "reasoning", "family": HOSTILE, "n": 200, "samples": 4, "mean": 0.625, "low": 0.551, "high": 0.694}
    (folder / "evaluation.json").write_text(json.dumps({"rows": [row | {"truncated": 3, "tokens": 9}]}))
    return writer
