from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.operate.architecture import describe_architecture, periods
from deepseek_r1.operate.picture import WIDTH, draw, short, svg
from support.own_models import CONFIGS
from support.published_models import PUBLISHED, write_config

SPACE = "{http://www.w3.org/2000/svg}"


def config_of(name: str) -> ModelConfig:
    if name in CONFIGS:
        return CONFIGS[name]
    config: ModelConfig = FAMILIES.load(PUBLISHED[name]["model_type"]).from_hf(Fields(name, PUBLISHED[name]))
    return config


EVERY = [*PUBLISHED, *CONFIGS]


def layers_of(architecture: dict[str, Any]) -> list[dict[str, Any]]:
    """Every layer that the parts stand for, one after the other."""
    out = []
    for part in architecture["parts"]:
        for _ in range(part.get("repeat", 0)):
            out += [layer for layer in part["layers"] for _ in range(layer["count"])]
    return out


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter(f"{SPACE}text")]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("aaa", [("a", 3, 1)]),
        ("dddMMMM", [("d", 3, 1), ("M", 4, 1)]),
        ("lllllg" * 4 + "ll", [("lllllg", 6, 4), ("l", 2, 1)]),
        ("abab", [("ab", 2, 2)]),
        ("rrrn" * 9, [("rrrn", 4, 9)]),
        ("abc", [("a", 1, 1), ("b", 1, 1), ("c", 1, 1)]),
        ("", []),
    ],
)
def test_repeated_layers_are_found(keys: str, expected: list[tuple[str, int, int]]) -> None:
    found = periods(keys)
    assert [
        (keys[first : first + min(length, len(pattern))], length, times)
        for (first, length, times), (pattern, _, _) in zip(found, expected, strict=True)
    ] == expected
    assert "".join(keys[first : first + length] * times for first, length, times in found) == keys


@pytest.mark.parametrize("name", EVERY)
def test_the_parts_are_the_model(name: str) -> None:
    config = config_of(name)
    architecture = describe_architecture(config)
    served = [part for part in architecture["parts"] if part["kind"] != "prediction"]
    for key in ("total", "active"):
        assert sum(part[key] for part in served) == architecture["parameters"][key]
    layers = layers_of(architecture)
    assert len(layers) == config.layers
    for index, layer in enumerate(layers):
        kinds = [part["kind"] for part in layer["parts"]]
        assert ("experts" in kinds) == config.has_experts(index)
        words = " ".join(layer["parts"][0]["words"])
        assert ("no rope" in words) == (config.layer_ropes[index] is None and config.mixer(index) != "delta")
        window = config.windows[index]
        assert ("window of" in words) == (window is not None and config.mixer(index) == "attention")
        assert ("gated delta" in words, "ring of" in words) == tuple(
            config.mixer(index) == x for x in ("delta", "ring")
        )


def test_r1_is_three_dense_layers_and_58_mixtures() -> None:
    """Figures by hand in test_plan.py; a mixture: 187_107_328 + 257 * 44_040_192 + 1_835_264 + 14_336."""
    architecture = describe_architecture(config_of("DeepSeek-R1"))
    names = [part["name"] for part in architecture["parts"]]
    assert names == [
        "token embedding",
        "3 x dense layer",
        "58 x MoE layer",
        "last norm",
        "output layer",
        "1 x prediction module",
    ]
    ((dense,), (mixture,)) = (part["layers"] for part in architecture["parts"][1:3])
    assert (dense["total"], dense["active"]) == (583_483_392, 583_483_392)
    assert (mixture["total"], mixture["active"]) == (11_507_286_272, 11_507_286_272 - 248 * 44_040_192)
    assert [part["total"] for part in mixture["parts"]] == [187_107_328, 11_320_164_608, 14_336]
    assert (mixture["parts"][1]["experts"], mixture["parts"][1]["chosen"], mixture["parts"][1]["shared"]) == (256, 8, 1)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gemma-3-1b", ["4 x (5 x local layer, 1 x global layer)", "2 x local layer"]),
        ("SmolLM3-3B", ["9 x (3 x layer, 1 x layer without rope)"]),
        ("DeepSeek-V2-Lite", ["1 x dense layer", "26 x MoE layer"]),
        ("Mixtral-8x7B", ["32 x MoE layer"]),
        ("Llama-3.1-8B", ["32 x layer"]),
    ],
)
def test_patterns_are_named(name: str, layers: list[str]) -> None:
    parts = describe_architecture(config_of(name))["parts"]
    assert [part["name"] for part in parts if part["kind"] == "layers"] == layers


@pytest.mark.parametrize("name", EVERY)
def test_the_drawing_is_as_wide_as_it_says_and_holds_the_numbers(name: str) -> None:
    architecture = describe_architecture(config_of(name))
    drawing = draw(architecture)
    boxes = [line for line in drawing.splitlines() if line.rstrip().endswith(("│", "┐", "┘", "┆"))]
    assert {len(line) for line in boxes} == {WIDTH}
    assert drawing.count("┌") == drawing.count("┐") == drawing.count("└") == drawing.count("┘")
    assert f"{architecture['parameters']['total']:,} parameters" in drawing
    for layer in layers_of(architecture):
        assert f"{layer['count']} x {layer['name']}" in drawing
        for part in layer["parts"]:
            assert short(part["total"]) in drawing


def test_the_drawing_of_r1() -> None:
    drawing = draw(describe_architecture(config_of("DeepSeek-R1")))
    for words in (
        "3 x dense layer                                             583.5 M each",
        "58 x MoE layer                               11.5 B, 585.3 M active each",
        "128 heads, latent 512 + 64, queries 1,536           187.1 M",
        "8 of 256 + 1 shared, 2,048 wide      11.3 B, 398.2 M active",
        "gated SiLU, sigmoid scores, best 4 of 8 groups",
        "671,026,419,200 parameters, 36,625,625,600 active for each token",
        "besides these 11,610,068,224 for prediction",
    ):
        assert words in drawing


def test_the_drawing_of_a_pattern_has_a_bracket() -> None:
    lines = draw(describe_architecture(config_of("gemma-3-1b"))).splitlines()
    bracket = [line[4] for line in lines if line[4:5] in "┏┃┗" and line[4:5]]
    assert [letter for letter, _ in groupby(bracket)] == ["┏", "┃", "┗"]
    assert sum(line.startswith("4 x ┃") for line in lines) == 1


@pytest.mark.parametrize("name", EVERY)
def test_the_svg_is_xml_that_holds_the_numbers_inside_its_page(name: str) -> None:
    architecture = describe_architecture(config_of(name))
    drawing = svg(architecture, name)
    root = ElementTree.fromstring(drawing)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    said = texts(drawing)
    assert said[0] == name and any(f"{architecture['parameters']['total']:,} parameters" in text for text in said)
    for layer in layers_of(architecture):
        assert f"{layer['count']} x {layer['name']}" in said
    for element in root.iter():
        if element.tag in (f"{SPACE}text", f"{SPACE}rect") and "x" in element.attrib:
            x, y = float(element.attrib["x"]), float(element.attrib["y"])
            right = x + float(element.get("width", 0))
            assert 0 <= x <= right <= width and 0 <= y + float(element.get("height", 0)) <= height
    assert not re.search(r"url\(|href|@import|@font-face", drawing), "nothing is fetched"


def test_the_svg_shows_every_expert() -> None:
    root = ElementTree.fromstring(svg(describe_architecture(config_of("DeepSeek-R1")), "R1"))
    styles = [element.get("class", "") for element in root.iter(f"{SPACE}rect")]
    assert sum("expert" in style for style in styles) == 256
    assert (styles.count("expert chosen"), styles.count("shared")) == (8, 1)


@pytest.mark.parametrize("title", ["<script>&\"'", "a\x00b\x1b[31m\ud800", "x" * 500, "]]>"])
def test_a_title_can_not_break_the_svg(title: str) -> None:
    said = texts(svg(describe_architecture(config_of("Llama-3.1-8B")), title))[0]
    assert len(said) <= 64 and said.isprintable()
    assert (
        len(title) > 64 or "".join(a if b.isprintable() else "\ufffd" for a, b in zip(said, title, strict=True)) == said
    )
    assert title.isprintable() <= (said == title or len(title) > 64)


def test_inspect_draws_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = write_config(tmp_path, "DeepSeek-R1"), tmp_path / "r1.svg"
    assert main(["models", "inspect", str(path), "--svg", str(file)]) == 0
    page = capsys.readouterr().out
    assert draw(describe_architecture(config_of("DeepSeek-R1"))) in page
    rows = [line.rsplit(maxsplit=2) for line in page.splitlines() if line.count(",") >= 2]
    assert ["in all", "671,026,419,200", "36,625,625,600"] in rows
    assert ["58 x MoE layer", "667,422,603,776", "33,948,482,048"] in rows  # 58 times the figures above
    assert texts(file.read_text())[0] == "DeepSeek-R1"
    assert main(["models", "inspect", str(path), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert (model["format"], model["parameters"], model["tensors"]) == ("config", 682_636_487_424, {})
    assert model["architecture"] == json.loads(json.dumps(describe_architecture(config_of("DeepSeek-R1"))))


def test_what_is_unknown_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mam\\u001b[2Jba"}')
    assert main(["models", "inspect", str(tmp_path), "--svg", str(tmp_path / "no.svg")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --svg: ") and not (tmp_path / "no.svg").exists()
    assert main(["models", "inspect", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Llama-3.1-8B"]))
    assert main(["models", "inspect", str(tmp_path), "--svg", str(tmp_path / "none/at.svg")]) == 2
    said = capsys.readouterr().err
    assert "none/at.svg: No such file or directory" in said and "mend: name a file in a folder" in said
