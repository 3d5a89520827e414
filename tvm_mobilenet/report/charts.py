"""Charts as SVG: bars, and points or lines over two axes, for a given width.

Every chart is drawn twice, for a desk and for a telephone: scaled down, its words could not be
read. The style sheet shows the one that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm_mobilenet.report import svg
from tvm_mobilenet.report.data import Axis, Bar, BarChart, Chart, Guide, Point, Series
from tvm_mobilenet.report.figures import tidy
from tvm_mobilenet.report.scales import Scale, scale_for

__all__ = ["NARROW", "WIDE", "draw"]

WIDE = 860.0
NARROW = 350.0
"""Widths in pixels: of a page on a desk, and of a telephone's screen less its margins."""

_ROW, _BAR = 24.0, 13.0
_NARROW_ROW = 36.0
_HEADING = 30.0
_MARGIN = 14.0


def draw(chart: BarChart | Chart, width: float) -> str:
    """Return a chart as an `<svg>` element of a width, in pixels."""
    if isinstance(chart, BarChart):
        return _draw_bars(chart, width)
    return _draw_points(chart, width)


def _label(chart: BarChart | Chart) -> str:
    return f"{chart.title}. {chart.summary}"


def _draw_bars(chart: BarChart, width: float) -> str:
    """Draw bars from the left; on a telephone label and value stand above their bar."""
    narrow = width < 600
    row = _NARROW_ROW if narrow else _ROW
    gutter = 0.0 if narrow else min(340.0, 12 + max(svg.text_width(b.label) for b in chart.bars))
    scale = _bar_scale(chart.bars, gutter, width, narrow=narrow)
    body: list[str] = []
    y = begin = 4.0
    for bar in chart.bars:
        if bar.heading:
            if body:
                body.append(svg.line(gutter, begin, gutter, y, "axis"))
                y += 8
            body.append(svg.text(0.0, y + 14, bar.heading, "heading"))
            begin = y = y + _HEADING - 6
        body.extend(_bar(bar, scale, y, width, narrow=narrow))
        y += row
    body.append(svg.line(gutter, begin, gutter, y, "axis"))
    return svg.figure(width, y + 4, body, _label(chart))


def _bar_scale(bars: Sequence[Bar], gutter: float, width: float, *, narrow: bool) -> Scale:
    """Make the bars as long as the words behind them allow. No ticks: each bar says its value."""
    room = width - gutter - 2
    per_unit = []
    for bar in bars:
        end = max(bar.value, bar.high or 0.0)
        if end > 0:
            per_unit.append((room if narrow else room - 10 - svg.text_width(bar.text)) / end)
    high = room / max(min(per_unit, default=1.0), 1e-12)
    return Scale(0.0, high, gutter, gutter + room, False, ())


def _bar(bar: Bar, scale: Scale, y: float, width: float, *, narrow: bool) -> Iterator[str]:
    start, end = scale.start, scale(bar.value)
    top = y + (19 if narrow else (_ROW - _BAR) / 2)
    middle = top + _BAR / 2
    soft = " soft" if bar.floor is not None else ""
    yield svg.rectangle(start, top, end - start, _BAR, f"bar {bar.tone}{soft}")
    if bar.floor is not None:
        yield svg.rectangle(start, top, scale(bar.floor) - start, _BAR, f"floor {bar.tone}")
    if bar.low is not None and bar.high is not None and bar.high > bar.low:
        left, right = scale(bar.low), scale(bar.high)
        yield svg.line(left, middle, right, middle, "whisker")
        for x in (left, right):
            yield svg.line(x, middle - 4, x, middle + 4, "whisker")
        end = max(end, right)
    if narrow:
        left_over = width - svg.text_width(bar.text) - 12
        yield svg.text(start, y + 14, svg.cut(bar.label, left_over), "label")
        yield svg.text(width, y + 14, bar.text, "value", "end")
    else:
        yield svg.text(start - 8, middle + 4, svg.cut(bar.label, start - 8), "label", "end")
        yield svg.text(end + 6, middle + 4, bar.text, "value")


def _draw_points(chart: Chart, width: float) -> str:
    narrow = width < 600
    height = 300.0 if narrow else 380.0
    points = [point for series in chart.series for point in series.points]
    xs = [p.x for p in points] + [g.x for g in chart.guides if g.x is not None]
    ys = [p.y for p in points] + [g.y for g in chart.guides if g.y is not None]
    for guide in chart.guides:
        if guide.through is not None:
            ys += [y for _, y in guide.through]
    bottom, top = height - 46, 30.0
    ticks = 4 if narrow else 6
    y_scale = scale_for(ys, bottom, top, log=chart.y.log, from_zero=chart.y.from_zero, ticks=5)
    left = 16 + max(svg.text_width(tidy(tick)) for tick in y_scale.ticks)
    x_scale = scale_for(
        xs,
        left,
        width - _MARGIN,
        log=chart.x.log,
        from_zero=chart.x.from_zero,
        whole=chart.x.whole,
        ticks=ticks,
    )
    body = [*_axes(chart, x_scale, y_scale, height)]
    for guide in chart.guides:
        body.extend(_guide(guide, x_scale, y_scale))
    for series in chart.series:
        body.extend(_series(series, x_scale, y_scale))
    body.extend(_labels(points, x_scale, y_scale, width))
    return svg.figure(width, height, body, _label(chart))


def _axes(chart: Chart, x: Scale, y: Scale, height: float) -> Iterator[str]:
    bottom, top = y.start, y.end
    for tick in y.ticks:
        yield svg.line(x.start, y(tick), x.end, y(tick), "grid")
        yield svg.text(x.start - 8, y(tick) + 4, tidy(tick), "tick", "end")
    free = -1e9
    for tick in x.ticks:
        yield svg.line(x(tick), bottom, x(tick), bottom + 4, "axis")
        half = svg.text_width(tidy(tick)) / 2
        if x(tick) - half > free and x(tick) + half < x.end + _MARGIN:
            yield svg.text(x(tick), bottom + 18, tidy(tick), "tick", "middle")
            free = x(tick) + half + 6
    yield svg.line(x.start, bottom, x.end, bottom, "axis")
    yield svg.text(x.end, height - 8, _named(chart.x), "name", "end")
    yield svg.text(4.0, top - 14, _named(chart.y), "name")


def _named(axis: Axis) -> str:
    words = ", ".join(filter(None, (axis.unit, "logarithmic" if axis.log else "")))
    return f"{axis.label} ({words})" if words else axis.label


def _guide(guide: Guide, x: Scale, y: Scale) -> Iterator[str]:
    kind = f"guide {guide.tone}"
    if guide.y is not None:
        level = y(guide.y)
        yield svg.line(x.start, level, x.end, level, kind)
        yield svg.text(x.end, level - 5, guide.label, f"note {guide.tone}", "end")
    elif guide.x is not None:
        place = x(guide.x)
        yield svg.line(place, y.start, place, y.end, kind)
        anchor = "end" if place > (x.start + x.end) / 2 else ""
        shift = -5 if anchor else 5
        yield svg.text(place + shift, y.end + 8, guide.label, f"note {guide.tone}", anchor)
    elif guide.through is not None:
        (x1, y1), (x2, y2) = guide.through
        yield svg.line(x(x1), y(y1), x(x2), y(y2), kind)
        if guide.label:
            yield svg.text(x(x1) + 6, y(y1) - 6, guide.label, f"note {guide.tone}")


def _series(series: Series, x: Scale, y: Scale) -> Iterator[str]:
    places = [(x(point.x), y(point.y)) for point in series.points]
    if series.kind != "dots" and places:
        yield svg.path(places, f"line {series.tone}", steps=series.kind == "steps")
        return
    for (across, up), point in zip(places, series.points, strict=True):
        yield svg.mark(across, up, series.shape, f"mark {series.tone}", point.title)


def _labels(points: Sequence[Point], x: Scale, y: Scale, width: float) -> Iterator[str]:
    """Write the labels of the few points that have one, clear of each other."""
    taken: list[tuple[float, float, float]] = []
    for point in points:
        if not point.label:
            continue
        across, up = x(point.x), y(point.y)
        length = svg.text_width(point.label)
        to_left = across + 5 + length > width
        begin = max(across - 5 - length if to_left else across + 5, 0.0)
        level = up - 9
        while any(abs(level - t) < 13 and begin < e and b < begin + length for b, e, t in taken):
            level += 13
        if level > y.start:
            continue  # no room: resting on the point still names it
        taken.append((begin, begin + length, level))
        yield svg.text(begin, level, point.label, "label")
