from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.operate.runs.charts import draw, label, smoothed, spans_decades, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg: str, style: str) -> list[np.ndarray]:
    """The parts of a line as points."""
    found = [
        each.get("d") or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}path") if each.get("class") == style
    ]
    return [
        np.array([[float(number) for number in point.split()] for point in part.split("L")])
        for path in found
        for part in path.split("M")[1:]
    ]


def words(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_points_lie_where_their_values_are() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    (line,) = paths(draw("loss", [0, 10, 20, 40], values), "smooth")
    x, y = line.T
    assert np.allclose((x - x[0]) / (x[-1] - x[0]), [0, 0.25, 0.5, 1], atol=1e-3)
    assert np.allclose((y - y[1]) / (y[3] - y[1]), (np.array(values) - 1) / 4, atol=2e-3)
    assert y[3] < y[1], "up is more"


def test_a_logarithmic_axis_places_powers_evenly_and_leaves_out_what_it_has_no_place_for() -> None:
    svg = draw("lr", range(6), [1e-6, 1e-5, 1e-4, 0.0, 1e-3, 1e-2], logarithmic=True)
    first, second = paths(svg, "smooth")
    steps = np.diff(np.concatenate([first, second])[:, 1])
    assert np.allclose(steps, steps[0], atol=0.2) and steps[0] < 0
    assert {"1e-06", "1e-05", "0.0001", "0.001", "0.01"} <= set(words(svg))


def test_missing_values_are_gaps_and_lonely_ones_dots() -> None:
    svg = draw("kl", range(7), [1, 2, math.nan, 3, math.nan, 4, 5])
    assert [len(part) for part in paths(svg, "smooth")] == [2, 2]
    assert svg.count("<circle") == 1
    empty = draw("kl", range(3), [math.nan] * 3)
    assert "no values to draw" in words(empty) and paths(empty, "smooth") == []


def test_smoothing_is_the_weighted_mean_of_what_was() -> None:
    values = list(np.random.default_rng(0).normal(size=50))
    for index, value in enumerate(smoothed(values, 0.9)):
        weights = 0.9 ** np.arange(index, -1, -1)
        assert value == pytest.approx(np.average(values[: index + 1], weights=weights))
    gap = smoothed([1.0, math.nan, 3.0], 0.5)
    assert gap[0] == 1 and math.isnan(gap[1]) and gap[2] == pytest.approx((0.5 * 1 + 3) / 1.5)
    long = draw("loss", range(1000), list(np.random.default_rng(0).normal(size=1000)))
    (raw,), (smooth,) = paths(long, "raw"), paths(long, "smooth")
    assert smooth[:, 1].std() < raw[:, 1].std() / 3


def test_thinning_keeps_the_peaks() -> None:
    values = list(np.random.default_rng(0).normal(size=10_000))
    values[1234], values[8765] = 50.0, -50.0
    values[5000:5100] = [math.nan] * 100
    points = list(thinned(range(10_000), values, 600))
    assert len(points) <= 600 and (1234, 50.0) in points and (8765, -50.0) in points
    assert any(value is None for _, value in points)
    assert [step for step, _ in points] == sorted({step for step, _ in points})


finite = st.floats(-1e300, 1e300)


@given(finite, finite)
def test_ticks_are_few_round_and_inside(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-290):
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    slack = (high - low) * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 1:
        assert re.fullmatch(r"[125]\.0+e.*", f"{found[1] - found[0]:.3e}") or abs(found[1]) > 1e3 * (high - low)


@given(st.lists(st.floats(allow_infinity=False, min_value=-1e300, max_value=1e300) | st.just(math.nan), max_size=30))
def test_anything_can_be_drawn(values: list[float]) -> None:
    for logarithmic in (False, True):
        svg = draw("x", range(len(values)), values, logarithmic=logarithmic)
        assert "nan" not in svg and "inf" not in svg
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0, 1, "0"),
        (2000, 500, "2,000"),
        (0.1 + 0.2, 0.1, "0.3"),
        (1e-5, 5e-6, "1.0e-05"),
        (5e6, 1e6, "5,000,000"),
        (3e7, 1e7, "3e+07"),
        (1000.25, 0.05, "1,000.25"),
        (-2.5, 0.5, "-2.5"),
    ],
)
def test_labels(value: float, step: float, text: str) -> None:
    assert label(value, step) == text


def test_names_are_text_and_decades_are_seen() -> None:
    assert "<b>" in words(draw("<b>", [1], [1.0]))
    assert "&lt;b&gt;" in draw("<b>", [1], [1.0])
    assert spans_decades([1e-6, 1.0]) and not spans_decades([0.0, 1.0]) and not spans_decades([1, 10])
    assert not spans_decades([math.nan])
