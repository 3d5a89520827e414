from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from tvm_mobilenet.report.charts import NARROW, WIDE, draw
from tvm_mobilenet.report.data import Axis, Bar, BarChart, Chart, Guide, Point, Series
from tvm_mobilenet.report.figures import middle_half, scientific, short, tidy
from tvm_mobilenet.report.scales import scale_for

HOSTILE = "</title><script>alert('1')</script> & \"x\" ümlaut"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0], [], [3.0, 3.0], [1e-9, 1e9], [0.37, 0.41], [-2.0, 5.0], [1e300, 1.0], [7, 9, 8]],
)
def test_a_scale_holds_its_values_and_its_ticks(values, log):
    scale = scale_for(values, 0.0, 100.0, log=log)
    for value in (*values, *scale.ticks):
        if value > 0 or not log:
            assert 0 <= scale(value) <= 100
    assert all(math.isfinite(tick) for tick in scale.ticks)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert len(scale.ticks) <= 14


def test_a_linear_scale_keeps_proportions():
    scale = scale_for([0.0, 8.0], 0.0, 100.0, from_zero=True)
    assert scale(0.0) == 0.0
    assert scale(4.0) == pytest.approx((scale(2.0) + scale(6.0)) / 2)


def test_a_logarithmic_scale_keeps_ratios():
    scale = scale_for([1.0, 1000.0], 0.0, 100.0, log=True)
    assert scale(100.0) - scale(10.0) == pytest.approx(scale(10.0) - scale(1.0))


def test_whole_numbers_get_whole_ticks():
    assert scale_for([0, 15], 0.0, 1.0, whole=True).ticks == (0, 3, 6, 9, 12, 15)
    assert scale_for([0, 1], 0.0, 1.0, whole=True).ticks == (0, 1)


def bar_chart(**change) -> BarChart:
    bar = {"label": HOSTILE, "value": 3.0, "text": "3 ms", "low": 2.0, "high": 4.0, **change}
    return BarChart(title=HOSTILE, summary="s", unit="ms", bars=(Bar(**bar),))


def point_chart(points: tuple[Point, ...], *, log: bool = False) -> Chart:
    return Chart(
        title=HOSTILE,
        summary="s",
        x=Axis(label="x", log=log),
        y=Axis(label="y", log=log),
        series=(
            *(
                Series(name=shape, points=points, shape=shape)
                for shape in ("circle", "square", "triangle", "diamond", "cross", "ring")
            ),
            Series(name="l", points=points, kind="line"),
            Series(name="s", points=points, kind="steps"),
        ),
        guides=(
            Guide(label=HOSTILE, y=2.0),
            Guide(label="b", x=2.0),
            Guide(label="c", through=((1.0, 1.0), (2.0, 2.0))),
        ),
    )


CHARTS = [
    bar_chart(),
    bar_chart(value=0.0, low=None, high=None),
    bar_chart(floor=1.0, heading="group"),
    bar_chart(value=1e-12, low=None, high=None),
    point_chart((Point(x=1.0, y=1.0, title=HOSTILE, label=HOSTILE),)),
    point_chart(tuple(Point(x=n, y=10.0**n, title="") for n in range(1, 40)), log=True),
]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("chart", CHARTS)
def test_every_shape_lies_inside_its_picture(chart, width):
    root = ElementTree.fromstring(draw(chart, width))
    _, _, right, bottom = map(float, root.attrib["viewBox"].split())
    assert right == width
    assert not root.findall(".//script")
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x", "x1", "x2", "cx"):
                assert -1 <= float(value) <= right + 1
            if name in ("y", "y1", "y2", "cy"):
                assert -1 <= float(value) <= bottom + 1
        assert not re.search("nan|inf", element.attrib.get("d", ""))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bars_are_as_long_as_their_values_say(width):
    bars = tuple(Bar(label=str(v), value=v, text=f"{v} ms") for v in (1.0, 2.0, 4.0))
    chart = BarChart(title="t", summary="s", unit="ms", bars=bars)
    root = ElementTree.fromstring(draw(chart, width))
    lengths = [float(r.attrib["width"]) for r in root if r.tag.endswith("rect")]
    assert lengths[1] / lengths[0] == pytest.approx(2, rel=0.01)
    assert lengths[2] / lengths[0] == pytest.approx(4, rel=0.01)


def test_a_picture_says_in_words_what_it_shows():
    root = ElementTree.fromstring(draw(bar_chart(), WIDE))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == f"{HOSTILE}. s"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0311, "0.0311"),
        (1.5, "1.50"),
        (167.6, "168"),
        (1234567, "1,234,567"),
        (1e-9, "1.0e-09"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert short(value) == text


def test_small_numbers_have_no_hyphen_to_break_at():
    assert scientific(1.34e-5) == "1.3·10⁻⁵"
    assert tidy(1e-4) == "10⁻⁴"
    assert tidy(2.5) == "2.5"


def test_the_middle_half_of_a_series():
    assert middle_half([5.0]) == (5.0, 5.0, 5.0)
    assert middle_half([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0, 4.0)
