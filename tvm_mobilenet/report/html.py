"""A report as one HTML file: no script, nothing loaded, light and dark, for desk, telephone, paper.

Whatever comes from a record is escaped by the template; the page's own policy refuses every
script and every request besides.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tvm_mobilenet.report import svg
from tvm_mobilenet.report.charts import NARROW, WIDE, draw
from tvm_mobilenet.report.data import BarChart, Chart, Document, Table
from tvm_mobilenet.report.figures import plural, shown

__all__ = ["render_html"]

_TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """Return the report as an HTML page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    css = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        document=document,
        css=Markup(css),
        draw=_draw,
        key=_key,
        shown=shown,
        is_facts=_is_facts,
        plural=plural,
        wide=WIDE,
        narrow=NARROW,
    )


def _draw(chart: BarChart | Chart, width: float, kind: str) -> Markup:
    # svg.py escapes what it writes.
    return Markup(draw(chart, width).replace("<svg ", f'<svg class="{kind}" ', 1))


def _key(chart: BarChart | Chart) -> list[tuple[Markup, str]]:
    """Return a sample and a name for everything that the chart does not name itself."""
    if isinstance(chart, BarChart):
        boxes = [(svg.rectangle(3.0, 2.0, 16.0, 10.0, tone), name) for name, tone in chart.key]
        return [(_sample(shape), name) for shape, name in boxes]
    entries = []
    for series in chart.series:
        if not series.in_key:
            continue
        if series.kind == "dots":
            shape = svg.mark(11.0, 7.0, series.shape, f"mark {series.tone}", "", 4.0)
        else:
            shape = svg.line(1.0, 7.0, 21.0, 7.0, f"line {series.tone}")
        entries.append((_sample(shape), series.name))
    return entries if len(entries) > 1 else []


def _sample(shape: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 22 14" aria-hidden="true">{shape}</svg>')


def _is_facts(table: Table) -> bool:
    """Tell whether a table is a list of facts, whose columns need no names."""
    return not any(column.title for column in table.columns)
