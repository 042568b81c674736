"""Draws what `describe_architecture` says: in box characters for the terminal, and as SVG. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

WIDTH = 76
"""Columns of the drawing in the terminal."""

Part = dict[str, Any]


def short(count: int) -> str:
    """A number of parameters as people say it: "671.0 B", "12.3 M", "7,168"."""
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:,.1f} {letter}"
    return f"{count:,}"


def figures(part: Part) -> str:
    """A part's parameters, and the active ones where they are fewer."""
    if not part["total"]:
        return ""
    total, active = short(part["total"]), short(part["active"])
    return total if total == active or not part["active"] else f"{total}, {active} active"


# --- text -------------------------------------------------------------------------------------------------------------


def draw(architecture: dict[str, Any]) -> str:
    """The drawing for a terminal, `WIDTH` columns wide: a box for each part, from the tokens down to the logits."""
    middle = WIDTH // 2
    arrow = " " * middle + "▼"
    blocks = [[" " * (middle - 2) + "tokens"]]
    after: list[str] = []
    for part in architecture["parts"]:
        if part["kind"] == "prediction":
            after = ["", *_box(_lines(part), WIDTH, "╌", "┆")]
        else:
            blocks.append(_group(part) if part["kind"] == "layers" else _box(_lines(part), WIDTH))
    blocks.append([" " * (middle - 2) + "logits"])
    lines = [line for block in blocks for line in (*block, arrow)][:-1]
    return "\n".join([*lines, *after, "", _sum(architecture)])


def _sum(architecture: dict[str, Any]) -> str:
    counts = architecture["parameters"]
    words = f"{counts['total']:,} parameters"
    if counts["active"] != counts["total"]:
        words += f", {counts['active']:,} active for each token"
    if counts["prediction_modules"]:
        words += f"\nbesides these {counts['prediction_modules']:,} for prediction"
    return words


def _group(part: Part) -> list[str]:
    """The layers of one part; a pattern that repeats has a bracket with its count on the left."""
    if part["repeat"] == 1:
        (layer,) = part["layers"]
        return _box(_layer_lines(layer), WIDTH)
    label = f"{part['repeat']} x "
    inner = [line for layer in part["layers"] for line in _box(_layer_lines(layer), WIDTH - len(label) - 2)]
    middle = len(inner) // 2
    out = []
    for index, line in enumerate(inner):
        bracket = "┏" if index == 0 else "┗" if index == len(inner) - 1 else "┃"
        out.append(f"{label if index == middle else ' ' * len(label)}{bracket} {line}")
    return out


def _lines(part: Part) -> Iterator[tuple[str, str]]:
    yield part["name"], figures(part)
    for words in part["words"]:
        yield f"  {words}", ""


def _layer_lines(layer: Part) -> Iterator[tuple[str, str]]:
    each = " each" if layer["count"] > 1 else ""
    yield f"{layer['count']} x {layer['name']}", f"{figures(layer)}{each}"
    for part in layer["parts"]:
        name = f"  {part['name']:<10} "
        for index, words in enumerate(part["words"]):
            yield (name if index == 0 else " " * len(name)) + words, figures(part) if index == 0 else ""


def _box(lines: Iterator[tuple[str, str]], width: int, line: str = "─", side: str = "│") -> list[str]:
    """Lines of (left, right) in a frame; what is too long for one line goes on in the next."""
    inside = width - 4
    rows = []
    for left, right in lines:
        indent = " " * (15 if left.startswith("  ") else 2)
        room = inside - len(right) - 2
        while len(left) > room:
            cut = left.rfind(" ", len(indent) + 1, room + 1)
            cut = room if cut < 0 else cut
            rows.append(f"{side} {left[:cut].ljust(inside - len(right))}{right} {side}")
            left, right = indent + left[cut:].lstrip(), ""
            room = inside
        rows.append(f"{side} {left.ljust(inside - len(right))}{right} {side}")
    return [f"┌{line * (width - 2)}┐", *rows, f"└{line * (width - 2)}┘"]


# --- SVG --------------------------------------------------------------------------------------------------------------

_STYLE = """
svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; }
.page { fill: #f7f7f8; } .card { fill: #ffffff; stroke: #b9bec7; } .later { stroke-dasharray: 5 4; }
.inner { fill: #eef1f5; } .wire { stroke: #7b8494; fill: none; stroke-width: 1.5; } .tip { fill: #7b8494; }
text { fill: #20242c; } .title { font-size: 18px; font-weight: 600; } .name { font-weight: 600; }
.quiet { fill: #5b6472; } .right { text-anchor: end; } .middle { text-anchor: middle; }
.expert { fill: #cfd5de; } .chosen { fill: #3f6fd1; } .shared { fill: #2f9e77; }
@media (prefers-color-scheme: dark) {
.page { fill: #16181d; } .card { fill: #1f232b; stroke: #4b5362; } .inner { fill: #282d37; }
.wire { stroke: #8b94a5; } .tip { fill: #8b94a5; } text { fill: #e8eaee; } .quiet { fill: #a3abb9; }
.expert { fill: #434b59; } .chosen { fill: #7ea3f0; } .shared { fill: #55c69b; }
}
"""

_PAGE, _LEFT, _CARD, _LINE, _GAP = 800, 70, 660, 19, 26
_CELL, _ACROSS, _MOST_CELLS = 10, 32, 512


class _Drawing:
    """Shapes added from the top down; `y` is where the next one begins."""

    def __init__(self) -> None:
        self.body: list[ElementTree.Element] = []
        self.y = 0

    def add(self, tag: str, words: str | None = None, /, **attributes: object) -> None:
        element = ElementTree.Element(
            tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
        )
        if words is not None:
            # What XML can't hold would leave the file unreadable.
            element.text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
        self.body.append(element)

    def line(self, left: str, right: str = "", *, x: int = 0, style: str = "") -> None:
        """One line of text inside the card, and figures at its right end."""
        self.y += _LINE
        self.add("text", left, x=_LEFT + 16 + x, y=self.y - 5, class_=style)
        if right:
            self.add("text", right, x=_LEFT + _CARD - 16, y=self.y - 5, class_=f"right {style}".strip())

    def arrow(self) -> None:
        """From what was drawn last to what comes next."""
        middle, top = _LEFT + _CARD // 2, self.y
        self.add("path", d=f"M{middle} {top}V{top + _GAP - 7}", class_="wire")
        self.add("path", d=f"M{middle - 5} {top + _GAP - 8}h10l-5 8z", class_="tip")
        self.y += _GAP


def svg(architecture: dict[str, Any], title: str) -> str:
    """The drawing as an SVG document, readable on light and dark pages; `title` is escaped and cut when it is long."""
    drawing = _Drawing()
    title = title if len(title) <= 64 else f"…{title[-63:]}"
    drawing.add("text", title, x=_LEFT, y=40, class_="title")
    words = f"{architecture['family']}, {architecture['layers']} layers, context of {architecture['context']:,} tokens"
    drawing.add("text", words, x=_LEFT, y=62, class_="quiet")
    drawing.add("text", "tokens", x=_LEFT + _CARD // 2, y=92, class_="middle quiet")
    drawing.y = 98
    drawing.arrow()
    modules = [part for part in architecture["parts"] if part["kind"] == "prediction"]
    for part in architecture["parts"]:
        if part["kind"] == "layers":
            _svg_group(drawing, part)
        elif part not in modules:
            _svg_card(drawing, part)
        if part not in modules:
            drawing.arrow()
    drawing.y += 14
    drawing.add("text", "logits", x=_LEFT + _CARD // 2, y=drawing.y, class_="middle quiet")
    drawing.y += 16
    for part in modules:
        _svg_card(drawing, part, "card later")
        drawing.y += 8
    for words in _sum(architecture).splitlines():
        drawing.y += _LINE
        drawing.add("text", words, x=_LEFT, y=drawing.y, class_="name")
    height = drawing.y + 30
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_PAGE} {height}"}
        | {"width": str(_PAGE), "height": str(height), "role": "img"},
    )
    ElementTree.SubElement(root, "style").text = _STYLE
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "class": "page"})
    root.extend(drawing.body)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _svg_card(drawing: _Drawing, part: Part, style: str = "card") -> None:
    height = 14 + _LINE * (1 + len(part["words"]))
    top = drawing.y
    drawing.add("rect", x=_LEFT, y=top, width=_CARD, height=height, rx=8, class_=style)
    drawing.y = top + 6
    drawing.line(part["name"], figures(part), style="name")
    for words in part["words"]:
        drawing.line(words, style="quiet")
    drawing.y = top + height


def _svg_group(drawing: _Drawing, part: Part) -> None:
    top = drawing.y
    for index, layer in enumerate(part["layers"]):
        drawing.y += 8 if index else 0
        _svg_layer(drawing, layer)
    if part["repeat"] > 1:
        bottom = drawing.y
        drawing.add("path", d=f"M{_LEFT - 8} {top}h-10V{bottom}h10", class_="wire")
        drawing.add("text", f"{part['repeat']} x", x=_LEFT - 24, y=(top + bottom) // 2 + 4, class_="right name")


def _svg_layer(drawing: _Drawing, layer: Part) -> None:
    """A card with the layer's name, and a field for each of its parts."""
    top = drawing.y
    place = len(drawing.body)
    drawing.y = top + 6
    each = " each" if layer["count"] > 1 else ""
    drawing.line(f"{layer['count']} x {layer['name']}", f"{figures(layer)}{each}", style="name")
    for part in layer["parts"]:
        drawing.y += 4
        start, field = drawing.y, len(drawing.body)
        drawing.y += 3
        for index, words in enumerate(part["words"]):
            if index == 0:
                drawing.add("text", part["name"], x=_LEFT + 26, y=drawing.y + _LINE - 5)
            drawing.line(words, figures(part) if index == 0 else "", x=92, style="quiet")
        if part["kind"] == "experts":
            _svg_experts(drawing, part)
        drawing.y += 5
        drawing.add("rect", x=_LEFT + 10, y=start, width=_CARD - 20, height=drawing.y - start, rx=5, class_="inner")
        drawing.body.insert(field, drawing.body.pop())
    drawing.y += 10
    drawing.add("rect", x=_LEFT, y=top, width=_CARD, height=drawing.y - top, rx=8, class_="card")
    drawing.body.insert(place, drawing.body.pop())


def _svg_experts(drawing: _Drawing, part: Part) -> None:
    """A cell for each expert: those that a token passes in another colour, the shared ones after them."""
    drawing.y += 6
    count = min(part["experts"], _MOST_CELLS)
    styles = ["expert chosen" if index < part["chosen"] else "expert" for index in range(count)]
    for index, style in enumerate([*styles, *["shared"] * part["shared"]]):
        x = _LEFT + 108 + index % _ACROSS * (_CELL + 1)
        y = drawing.y + index // _ACROSS * (_CELL + 1)
        drawing.add("rect", x=x, y=y, width=_CELL - 1, height=_CELL - 1, class_=style)
    drawing.y += -(-(count + part["shared"]) // _ACROSS) * (_CELL + 1) + 2
