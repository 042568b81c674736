"""A curve of a run as an SVG line chart: the values, a smoothed line over them, both axes. No torch, no libraries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

MOST_POINTS = 600
"""Points of a drawn line; of more values, the least and the greatest of each group are drawn."""

LEAST_LOGARITHMIC = 1e-300

LOGARITHMIC_FROM = 1000.0
"""How many times the least value the greatest one is from which `spans_decades` asks for a logarithmic axis."""

# The colour is what the page around sets; where there is none (an image), the reader's scheme decides.
STYLE = """
.curve { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; }
.curve text { fill: currentColor; } .curve path { stroke: currentColor; fill: none; }
.curve .title { font-weight: 600; font-size: 15px; } .curve .grid { opacity: 0.15; } .curve .raw { opacity: 0.35; }
.curve .smooth { stroke: #2f6fde; stroke-width: 2; } .curve .right { text-anchor: end; }
.curve .middle { text-anchor: middle; } .curve circle { fill: currentColor; }
@media (prefers-color-scheme: dark) { .curve:root { color: #e8eaee; } .curve .smooth { stroke: #7ea3f0; } }
"""

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 20, 40, 44
_TICKS = 5


def draw(title: str, steps: Sequence[int], values: Sequence[float], *, logarithmic: bool = False) -> str:
    """The SVG document of one curve; NaN is a gap, and so is what a logarithmic axis can't show.

    Where there are enough values for it, a line over them is smoothed by a fiftieth of their number.
    """
    if logarithmic:
        values = [value if value >= LEAST_LOGARITHMIC else math.nan for value in values]
    real = [value for value in values if not math.isnan(value)]
    last = f"{real[-1]:.6g}" if real else "no value"
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "curve"}
        | {"width": str(_WIDTH), "height": str(_HEIGHT), "role": "img", "aria-label": f"{title}: last {last}"},
    )
    ElementTree.SubElement(root, "style").text = STYLE
    _text(root, title, _LEFT, 22, "title")
    _text(root, last, _WIDTH - _RIGHT, 22, "right")
    if not real:
        _text(root, "no values to draw", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT / 2, "middle")
        return ElementTree.tostring(root, encoding="unicode") + "\n"
    across = _Axis(float(steps[0]), float(steps[-1]), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(min(real), max(real), _HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic, pad=0.05)
    _grid(root, across, up)
    span = len(real) // 50
    _line(root, thinned(steps, values), across, up, "raw" if span > 1 else "smooth")
    if span > 1:
        _line(root, thinned(steps, smoothed(values, 1 - 1 / span)), across, up, "smooth")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better: all above 0, the greatest far from the least."""
    real = [value for value in values if not math.isnan(value)]
    return bool(real) and min(real) > 0 and max(real) / LOGARITHMIC_FROM > min(real)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """The exponential moving average, each value counting `weight` times the one after it; unbiased from the start.

    NaN stays NaN and doesn't count.
    """
    total = norm = 0.0
    out = []
    for value in values:
        if math.isnan(value):
            out.append(value)
            continue
        total, norm = total * weight + value, norm * weight + 1.0
        out.append(total / norm)
    return out


def thinned(
    steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS
) -> Iterator[tuple[float, float | None]]:
    """At most about `most` points that keep every peak; a gap is (step, None)."""
    if len(values) <= most:
        yield from ((step, None if math.isnan(value) else value) for step, value in zip(steps, values, strict=True))
        return
    groups = most // 2
    for group in range(groups):
        begin, end = group * len(values) // groups, (group + 1) * len(values) // groups
        real = [index for index in range(begin, end) if not math.isnan(values[index])]
        if not real:
            yield steps[begin], None
            continue
        ends = (min(real, key=values.__getitem__), max(real, key=values.__getitem__))
        yield from ((steps[index], values[index]) for index in sorted(set(ends)))


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    step = _round_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, min(last, first + most) + 1)]


def label(value: float, step: float) -> str:
    """A tick's words, with as many digits as tell it from one that is `step` away."""
    if value == 0:
        return "0"
    size = max(abs(value), abs(step))
    if 1e-4 <= size < 1e7:
        decimals = min(8, max(0, -math.floor(math.log10(step) + 1e-9)))
        return f"{value:,.{decimals}f}"
    return f"{value:.{min(8, max(0, math.floor(math.log10(size) + 1e-9) - math.floor(math.log10(step) + 1e-9)))}e}"


class _Axis:
    """Places of values from `low` to `high` between two ends of the drawing; `pad` is the share left free at each."""

    def __init__(
        self, low: float, high: float, begin: float, end: float, *, logarithmic: bool = False, pad: float = 0.0
    ) -> None:
        self._of = math.log10 if logarithmic else float
        low, high = self._of(low), self._of(high)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-290):  # a level line is drawn in the middle
            room = abs(low) / 10 or 1.0
            low, high = low - room, high + room
        room = (high - low) * pad
        self._low, self._high, self._begin, self._end = low - room, high + room, begin, end
        self.logarithmic = logarithmic

    def place(self, value: float) -> float:
        return self._at(self._of(value))

    def _at(self, number: float) -> float:
        return self._begin + (number - self._low) / (self._high - self._low) * (self._end - self._begin)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Places and words."""
        low, high = self._low, self._high
        if self.logarithmic:
            powers = range(math.ceil(low), math.floor(high) + 1)
            if len(powers) > 1:
                every = -(-len(powers) // (_TICKS + 1))
                yield from ((self._at(power), _power(power)) for power in powers[::every])
                return
            found = [value for value in ticks(10**low, 10**high) if value > 0]
        else:
            found = ticks(low, high)
        step = found[1] - found[0] if len(found) > 1 else abs(found[0]) or 1.0
        yield from ((self.place(value), label(value, step)) for value in found)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -5 < exponent < 6 else f"1e{exponent:+03d}"


def _grid(root: ElementTree.Element, across: _Axis, up: _Axis) -> None:
    for y, words in up.ticks():
        ElementTree.SubElement(root, "path", {"d": f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", "class": "grid"})
        _text(root, words, _LEFT - 8, y + 4, "right")
    for x, words in across.ticks():
        if "." in words:  # between two steps
            continue
        _text(root, words, x, _HEIGHT - _BOTTOM + 18, "middle")
    axes = f"M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"
    ElementTree.SubElement(root, "path", {"d": axes, "class": "axis"})
    _text(root, "step", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "middle")


def _line(
    root: ElementTree.Element, points: Iterator[tuple[float, float | None]], across: _Axis, up: _Axis, style: str
) -> None:
    """A path with gaps; a value between two gaps is a dot."""
    parts: list[list[str]] = [[]]
    for step, value in points:
        if value is None:
            parts.append([])
        else:
            parts[-1].append(f"{across.place(step):.1f} {up.place(value):.1f}")
    path = "".join("M" + "L".join(part) for part in parts if len(part) > 1)
    if path:
        ElementTree.SubElement(root, "path", {"d": path, "class": style})
    for part in parts:
        if len(part) == 1:
            x, y = part[0].split()
            ElementTree.SubElement(root, "circle", {"cx": x, "cy": y, "r": "2"})


def _round_step(least: float) -> float:
    """The least of 1, 2 and 5 times the powers of ten that is not below `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least * (1 - 1e-9)), 10 * power)


def _text(root: ElementTree.Element, words: str, x: float, y: float, style: str) -> None:
    element = ElementTree.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style})
    element.text = words
