"""R1-Lite's report, model card and publishing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import r1_lite
import r1_lite_card
import r1_lite_report
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.data.tasks.families import OUTSIDE
from deepseek_r1.models.adapters import read_adapter_config
from support.r1_lite_folder import PROBLEMS, Refused, digest, evaluation, scored


def test_the_report_holds_the_numbers(made: Path) -> None:
    other = shutil.copytree(made, made.with_name("other"))
    theirs = evaluation(other) | {"seed": 1}
    theirs["totals"] = [total | {"mean": 0.123, "low": 0.1, "high": 0.2} for total in theirs["totals"]]
    (other / "evaluation.json").write_text(json.dumps(theirs))
    assert r1_lite.main([str(made), "--only", "report", "--beside", str(other)]) == 0
    found = evaluation(made)
    for text in ((made / "report.md").read_text(), (made / "README.md").read_text()):
        for total in found["totals"]:
            low, high = 100 * total["low"], 100 * total["high"]
            assert f"{100 * total['mean']:.1f} % ({low:.1f} to {high:.1f}, n={total['n']})" in text
        assert "| rl | 1 | 12.3 % (10.0 to 20.0, n=12) |" in text
        assert "RL does not beat the SFT-only control" in text and found["runs"][best(made)]["adapter_sha256"] in text
        assert all(family in text for family in OUTSIDE)
    report = (made / "report.md").read_text()
    for name in ("totals", "sft-loss", "rl-pass-rate", "rl-reward", "control-loss"):
        assert f"(report-{name}.svg)" in report
        ElementTree.parse(made / f"report-{name}.svg")
    page = (made / "report.html").read_text()
    assert page.count("<svg") == 5 and "<script" not in page and "12.3 % (10.0 to 20.0, n=12)" in page
    assert report.count("Right is") == 4 * 3
    assert (made / "README.md").read_text().startswith("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n")


def best(folder: Path) -> str:
    """The run that gets most of the trained families right; of equals the one made first."""
    total = {
        found["name"]: found["mean"]
        for found in evaluation(folder)["totals"]
        if found["group"] == "trained families" and found["level"] is None
    }
    return max(("sft", "rl", "control"), key=lambda name: total[name])


@pytest.mark.parametrize("winner", ["sft", "rl", "control"])
def test_the_best_run_is_the_one_published(winner: str, made: Path, tmp_path: Path) -> None:
    found = evaluation(made)
    for total in found["totals"]:
        # What is outside, and a single level, doesn't count.
        counts = total["group"] == "trained families" and total["level"] is None
        total["mean"] = 0.5 if counts and total["name"] == winner else 0.4 if counts else 0.9
    (made / "evaluation.json").write_text(json.dumps(found))
    assert best(made) == winner
    assert r1_lite.main([str(made), "--only", "report"]) == 0
    card = (made / "README.md").read_text()
    assert card.count("this adapter)") == 1 and f"(`{winner}`, this adapter)" in card
    to = r1_lite_card.publish(made, tmp_path / "published")
    assert digest(to / "adapter_model.safetensors") == found["runs"][winner]["adapter_sha256"]
    assert digest(made / winner / "result" / "adapter_model.safetensors") == found["runs"][winner]["adapter_sha256"]


def test_samples_show_failures_too() -> None:
    given = scored([0, 0, 0, 0, 1, 1])
    assert [answer["place"] for answer in r1_lite_report.samples(given)] == ["4", "0", "2"]
    assert [answer["place"] for answer in r1_lite_report.samples(scored([1] * 6))] == ["0", "1", "2"]
    assert r1_lite_report.samples([]) == []


def test_publishing(made: Path, tmp_path: Path) -> None:
    to = tmp_path / "package" / "r1_lite"
    for _ in range(2):  # the second takes the first one's place
        assert r1_lite.main([str(made), "--only", "publish", "--to", str(to)]) == 0
    names = {path.name for path in to.iterdir()}
    want = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "report.md",
        "evaluation.json",
        "recipe.json",
    }
    assert want <= names and {name for name in names - want if not name.endswith(".svg")} == set()
    assert [path.name for path in to.parent.iterdir()] == ["r1_lite"]
    weights = made / best(made) / "result" / "adapter_model.safetensors"
    assert digest(to / "adapter_model.safetensors") == digest(weights)
    fields = json.loads((to / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read_adapter_config(to) == read_adapter_config(made / "rl" / "result")
    recipe = json.loads((to / "recipe.json").read_text())
    assert recipe["runs"]["rl"]["method"] == "grpo" and recipe["runs"]["rl"]["start_from"] == "sft"
    assert recipe["runs"]["sft"]["lr"] == 1e-3 and recipe["scale"] == 0.004
    for path in (path for path in to.iterdir() if path.suffix != ".safetensors"):
        assert str(tmp_path) not in path.read_text() and str(made) not in path.read_text()


def test_what_is_not_published(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    to = tmp_path / "published"
    given = [str(made), "--only", "publish", "--to", str(to)]
    to.mkdir()
    (to / "mine.txt").write_text("x")
    assert "mine.txt is not of this model" in refused(*given)
    (to / "mine.txt").unlink()
    weights = made / best(made) / "result" / "adapter_model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(r1_lite_card, "TOO_LARGE", weights.stat().st_size)
        assert "are too many" in refused(*given)
        patch.setattr(r1_lite_card, "LEAST_PROBLEMS", PROBLEMS + 1)
        assert f"is evaluated on {PROBLEMS} problems of trained families only" in refused(*given)
    card = (made / "README.md").read_text()
    (made / "README.md").write_text("of another one")
    assert "README.md is not of this adapter" in refused(*given)
    (made / "README.md").write_text(card)
    whole = evaluation(made)
    lacking = whole | {"totals": [total for total in whole["totals"] if total["name"] != "sft"]}
    (made / "evaluation.json").write_text(json.dumps(lacking))
    assert "sft is not evaluated on trained families" in refused(*given)
    (made / "evaluation.json").write_text(json.dumps(whole))
    weights.write_bytes(weights.read_bytes() + b"x")
    assert "is not the adapter that was evaluated" in refused(*given)
    assert list(to.iterdir()) == []


def test_a_failed_swap_leaves_what_was_published(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "published"
    assert r1_lite_card.publish(made, to) == to
    real, calls = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        if Path(target) == to:
            calls[0] += 1
            if calls[0] == 1:
                raise OSError(28, "No space left on device", str(to))
        real(source, target)

    monkeypatch.setattr(r1_lite_card.os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        r1_lite_card.publish(made, to)
    assert (to / "adapter_model.safetensors").exists()


def test_a_card_before_there_are_rewards(whole: Path) -> None:
    found = evaluation(whole)
    early = found | {"runs": {}, "differences": [], "totals": found["totals"][:4]}
    text = r1_lite_card.card([early])
    assert "not made yet" in text and "not both examined yet" in text
    with pytest.raises(DeepSeekError, match="sft is not evaluated"):
        r1_lite_card._refuse_incomplete(early)
