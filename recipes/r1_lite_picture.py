"""R1-Lite's picture: pass@1 of every policy with its 95 % interval, by group of families, of one seed or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from deepseek_r1.operate.runs.charts import STYLE, ticks
from r1_lite_evaluation import OUTSIDE_GROUP, POLICIES, TRAINED_GROUP

COLOURS = {"base": "#808895", "sft": "#d9822b", "rl": "#2f6fde", "control": "#3a9d5d"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 64, 16, 44, 72


def draw_totals(evaluations: Sequence[dict[str, Any]]) -> str:
    """The SVG document. Of several evaluations (seeds), each policy has a dot for each, side by side."""
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "curve", "role": "img"}
        | {"width": str(WIDTH), "height": str(HEIGHT), "aria-label": "pass@1 by policy, with 95 % intervals"},
    )
    ElementTree.SubElement(root, "style").text = STYLE
    seeds = ", ".join(str(evaluation["seed"]) for evaluation in evaluations)
    words = f"pass@1 in percent, 95 % intervals, seed{'s' * (len(evaluations) > 1)} {seeds}"
    _text(root, words, LEFT, 22, "title")
    totals = [total for evaluation in evaluations for total in evaluation["totals"] if total["level"] is None]
    top = max(0.05, *(total["high"] for total in totals))
    for value in ticks(0.0, top):
        y = _up(value, top)
        ElementTree.SubElement(root, "path", {"d": f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", "class": "grid"})
        _text(root, f"{100 * value:.0f}", LEFT - 8, y + 4, "right")
    for place, group in enumerate((TRAINED_GROUP, OUTSIDE_GROUP)):
        wide = (WIDTH - LEFT - RIGHT) / 2
        _text(root, group, LEFT + (place + 0.5) * wide, HEIGHT - BOTTOM + 42, "middle")
        for number, policy in enumerate(POLICIES):
            middle = LEFT + place * wide + (number + 0.5) * wide / len(POLICIES)
            _text(root, policy, middle, HEIGHT - BOTTOM + 20, "middle")
            for index, evaluation in enumerate(evaluations):
                shift = 76 / len(evaluations) * (index - (len(evaluations) - 1) / 2)
                for total in evaluation["totals"]:
                    if (total["name"], total["group"], total["level"]) == (policy, group, None):
                        _dot(root, total, middle + shift, top)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _dot(root: ElementTree.Element, total: dict[str, Any], x: float, top: float) -> None:
    """A dot at the mean, a bar from end to end of the interval, and the mean in words above it."""
    mean, low, high = (_up(total[name], top) for name in ("mean", "low", "high"))
    colour = COLOURS[total["name"]]
    bar = {"x": f"{x - 1:.1f}", "y": f"{high:.1f}", "width": "2", "height": f"{low - high:.1f}", "fill": colour}
    ElementTree.SubElement(root, "rect", bar)
    # A rounded square: charts.STYLE gives circles the colour of text.
    dot = {"x": f"{x - 5:.1f}", "y": f"{mean - 5:.1f}", "width": "10", "height": "10", "rx": "5", "fill": colour}
    ElementTree.SubElement(root, "rect", dot)
    _text(root, f"{100 * total['mean']:.1f}", x, high - 6, "middle")


def _up(share: float, top: float) -> float:
    return TOP + 16 + (HEIGHT - TOP - BOTTOM - 16) * (1 - share / top)


def _text(root: ElementTree.Element, words: str, x: float, y: float, style: str) -> None:
    ElementTree.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style}).text = words
