"""The histogram of the examples' lengths: its groups, and their picture as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

MAX_BINS = 32

# The colour is what the page around sets; where there is none (an image), the reader's scheme decides.
_STYLE = """
.lengths { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; }
.lengths text { fill: currentColor; } .lengths .bar { fill: currentColor; opacity: 0.6; }
.lengths .axis { stroke: currentColor; fill: none; } .lengths .grid { stroke: currentColor; opacity: 0.2; fill: none; }
.lengths .middle { text-anchor: middle; } .lengths .right { text-anchor: end; }
@media (prefers-color-scheme: dark) { .lengths:root { color: #e8eaee; } }
"""

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 20, 48, 56
_TICKS = 5


@dataclass(frozen=True)
class Bin:
    """`count` examples of `low` to `high` tokens, both included."""

    low: int
    high: int
    count: int


def make_bins(counts: Mapping[int, int]) -> tuple[Bin, ...]:
    """Groups of equal width without gaps, at most `MAX_BINS`, from how many examples have each length."""
    shortest, longest = min(counts), max(counts)
    width = _round_step(longest - shortest + 1, MAX_BINS - 1)
    first = shortest // width
    totals = [0] * (longest // width - first + 1)
    for length, count in counts.items():
        totals[length // width - first] += count
    return tuple(
        Bin((first + index) * width, (first + index + 1) * width - 1, total) for index, total in enumerate(totals)
    )


def draw(bins: Sequence[Bin], title: str) -> str:
    """The SVG document: a bar per group, lengths along the x axis and numbers of examples along the y axis."""
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "lengths"}
        | {"width": str(_WIDTH), "height": str(_HEIGHT), "role": "img", "aria-label": f"Lengths of {title}"},
    )
    ElementTree.SubElement(root, "style").text = _STYLE
    _text(root, title, _LEFT, 26)
    floor, across = _HEIGHT - _BOTTOM, _WIDTH - _LEFT - _RIGHT
    step = _round_step(max(group.count for group in bins), _TICKS)
    top = step * -(-max(group.count for group in bins) // step)
    for tick in range(0, top + 1, step):
        y = floor - tick / top * (floor - _TOP)
        ElementTree.SubElement(root, "path", {"d": f"M{_LEFT} {y:.1f}h{across}", "class": "grid" if tick else "axis"})
        _text(root, f"{tick:,}", _LEFT - 8, y + 4, "right")
    room = across / len(bins)
    for index, group in enumerate(bins):
        x, height = _LEFT + index * room, group.count / top * (floor - _TOP)
        bar = {"x": f"{x + 0.5:.1f}", "y": f"{floor - height:.1f}", "width": f"{max(room - 1, 0.5):.1f}"}
        element = ElementTree.SubElement(root, "rect", bar | {"height": f"{height:.1f}", "class": "bar"})
        ElementTree.SubElement(element, "title").text = f"{group.low} to {group.high} tokens: {group.count} examples"
    every = -(-len(bins) // 8)
    for index in range(0, len(bins), every):
        _text(root, f"{bins[index].low:,}", _LEFT + index * room, floor + 18, "middle")
    _text(root, "tokens per example", _LEFT + across / 2, _HEIGHT - 14, "middle")
    label = _text(root, "examples", 20, (floor + _TOP) / 2, "middle")
    label.set("transform", f"rotate(-90 20 {(floor + _TOP) / 2:.1f})")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _round_step(span: int, parts: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … of which at most `parts` cover `span`."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if factor * step * parts >= span:
                return factor * step
        step *= 10


def _text(root: ElementTree.Element, words: str, x: float, y: float, style: str = "") -> ElementTree.Element:
    element = ElementTree.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style})
    element.text = words
    return element
