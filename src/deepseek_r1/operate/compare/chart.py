"""The chart of a comparison as SVG: for every case a bar per engine, with the range of its rounds."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

_STYLE = """
svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; }
.page { fill: #f7f7f8; } text { fill: #20242c; } .title { font-size: 18px; font-weight: 600; }
.case { font-weight: 600; } .quiet { fill: #5b6472; } .right { text-anchor: end; }
.ours { fill: #3f6fd1; } .theirs { fill: #aeb6c2; } .range { stroke: #20242c; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
.page { fill: #16181d; } text { fill: #e8eaee; } .quiet { fill: #a3abb9; }
.ours { fill: #7ea3f0; } .theirs { fill: #5a6373; } .range { stroke: #e8eaee; }
}
"""

_WIDTH, _LEFT, _BAR, _HEIGHT, _STEP, _LABEL = 860, 230, 430, 14, 22, 30


def svg(report: dict[str, Any], title: str) -> str:
    """A group of bars per case, longest = fastest of the case: tokens/s, of cold starts seconds (there short is good).

    The thin line is the range from the slowest round to the fastest; at the right, how many times as fast ours is.
    """
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "width": str(_WIDTH), "role": "img"})
    ElementTree.SubElement(root, "style").text = _STYLE
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "class": "page"})
    _text(root, title, 24, 36, "title")
    machine = report["machine"]
    _text(root, f"{machine['cpu']}, {machine['cpu_count']} cores, {report['created'][:10]}", 24, 57, "quiet")
    y = 76
    for case in report["cases"]:
        y = _case(root, case, y + 22)
    root.set("height", str(y + 20))
    root.set("viewBox", f"0 0 {_WIDTH} {y + 20}")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(root: ElementTree.Element, case: dict[str, Any], y: int) -> int:
    """Draw one case from `y` on and return where it ends."""
    cold = case["phase"] == "cold"
    name = "first_token_seconds" if cold else "rate"
    _text(root, f"{case['words']} ({'seconds, shorter is better' if cold else 'tokens/s'})", 24, y, "case")
    most = max((row[name]["max"] for row in case["rows"]), default=1.0)
    for row in case["rows"]:
        y += _STEP
        values, ratio = row[name], row.get("ratio")
        ours = ratio is None
        label = row["label"] if len(row["label"]) <= _LABEL else f"{row['label'][: _LABEL - 1]}…"
        _text(root, label, _LEFT - 10, y, "right" if ours else "right quiet")
        bar = {"x": str(_LEFT), "y": str(y - _HEIGHT + 3), "height": str(_HEIGHT), "rx": "2"}
        width = _place(values["median"], most)
        ElementTree.SubElement(root, "rect", bar | {"width": f"{width:.1f}", "class": "ours" if ours else "theirs"})
        low, high = (_LEFT + _place(values[end], most) for end in ("min", "max"))
        middle = y - _HEIGHT // 2 + 3
        ElementTree.SubElement(root, "path", {"d": f"M{low:.1f} {middle}H{high:.1f}", "class": "range"})
        words = f"{values['median']:.2f}" if cold else f"{values['median']:.1f}"
        _text(root, words + (f", ours {ratio['median']:.2f} x" if ratio else ""), _LEFT + _BAR + 12, y, "quiet")
    return y + 8


def _place(value: float, most: float) -> float:
    return _BAR * value / most


def _text(root: ElementTree.Element, words: str, x: int, y: int, style: str) -> None:
    element = ElementTree.SubElement(root, "text", {"x": str(x), "y": str(y), "class": style})
    # What XML can't hold would leave the file unreadable.
    element.text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
