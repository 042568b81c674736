from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from deepseek_r1.data.histogram import make_bins
from deepseek_r1.data.report import Counts, DataReport, Lengths
from deepseek_r1.operate.runs.contents import evaluation_cells, settings
from deepseek_r1.operate.runs.read import RunError
from deepseek_r1.operate.runs.report import write_report
from deepseek_r1.operate.runs.rows import EvaluationRow
from support.run_folder import HOSTILE, write_run

DATA = DataReport(
    counts=Counts(10, 0, 0, 0, True, 0),
    examples=10,
    tokens=1000,
    trained_tokens=500,
    trained_share=0.5,
    lengths=Lengths(50, 90, 150, 200, 200),
    histogram=make_bins({50: 3, 200: 7}),
    first_example="[<b>] & `x`",
    digest="0123456789abcdef",
)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a <b> run"
    write_run(folder).finish("finished")
    (folder / "data.json").write_text(json.dumps(DATA.as_json()))
    return folder


def test_the_page_says_everything_and_loads_nothing(folder: Path) -> None:
    path, _ = write_report(folder)
    page = Elements(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 4 + 1 and page.tags.count("details") == 7
    assert not {"script", "img", "link", "a", "iframe", "b"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "style") or name.startswith("on")]
    policy = next(
        value or "" for name, value in page.attributes if name == "content" and "default-src" in (value or "")
    )
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    shown = HOSTILE.replace("\x1b", "\N{SYMBOL FOR ESCAPE}").replace("\u202e", "\ufffd")
    for words in ("a <b> run", "60 of 60", "a.b", "[1, 2]", "62.5 %", "55.1 to 69.4 %", "[<b>] & `x`", shown):
        assert words in page.text
    assert f"answer 2 of step 60 {shown}" in page.text and f"answer 1 of step 1 {shown}" in page.text


def test_the_markdown_renders_what_is_said_as_text(folder: Path) -> None:
    _, path = write_report(folder)
    text = path.read_text(encoding="utf-8")
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)
    page = Elements(html)
    pictures = [value or "" for name, value in page.attributes if name == "src"]
    assert pictures == [f"report-{name}.svg" for name in ("loss", "lr", "reward", "seconds")] + ["report.data.svg"]
    assert not {"script", "a", "b"} & set(page.tags) and page.tags.count("h3") == 7
    for name in pictures:
        ElementTree.parse(folder / name)
    shown = HOSTILE.replace("\x1b", "\N{SYMBOL FOR ESCAPE}").replace("\u202e", "\ufffd")
    assert page.text.count(shown) > 7, "code, cells and headings show it whole"
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    assert "evil.example" in outside and "http://" not in outside, "no renderer makes a link of it"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a b": 1}\n{"step": 1, "A-B": null}\nbroken\n')
    (tmp_path / "data.json").write_text('{"histogram": []}')
    (tmp_path / "victim").write_text("mine")
    os.symlink("victim", tmp_path / "report.html")
    page, markdown = write_report(tmp_path)
    assert (tmp_path / "victim").read_text() == "mine" and not page.is_symlink()
    assert (tmp_path / "report-a-b.svg").exists() and (tmp_path / "report-a-b-2.svg").exists()
    text = Elements(page.read_text()).text
    assert "1 lines are not as the trainer writes them" in text and "data.json is not a report" in text
    assert "no values to draw" in text and "Rollouts" not in markdown.read_text()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "report.md").mkdir()
    with pytest.raises(RunError, match="can't be written"):
        write_report(tmp_path)


def test_evaluation_cells_tell_shares_from_other_numbers() -> None:
    share = EvaluationRow(suite="s", n=1000, mean=0.5, low=0.469, high=0.531)
    assert evaluation_cells(share)[3:] == ("1,000", "1", "50.0 %", "46.9 to 53.1 %", "0")
    other = EvaluationRow(suite="perplexity", n=5, mean=12.3456, low=11.0, high=13.75)
    assert evaluation_cells(other)[5:7] == ("12.35", "11 to 13.75")
    assert evaluation_cells(EvaluationRow(suite="s", n=0, mean=None))[5:7] == ("?", "")


def test_settings_are_bounded() -> None:
    assert settings({"a": {"b": 1, "c": {}}, "d": None, "e": "x"}) == (
        ("a.b", "1"),
        ("a.c", "{}"),
        ("d", "null"),
        ("e", "x"),
    )
    assert settings(None) == ()
    assert len(settings({str(number): "x" * 10_000 for number in range(1000)})) == 401
