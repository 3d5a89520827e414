"""What a report is made of, before it is HTML, Markdown, CSV or JSON: sections, tables, charts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "Axis",
    "Bar",
    "BarChart",
    "Card",
    "Cell",
    "Chart",
    "Column",
    "Document",
    "Guide",
    "Point",
    "Section",
    "Series",
    "Table",
    "Tone",
]

Cell = str | float | int | None
Tone = Literal["ours", "plain", "alarm", "second", "third", "faint"]
"""What a mark stands for; the style sheet gives each a colour that the colour-blind tell apart."""
Shape = Literal["circle", "square", "triangle", "diamond", "cross", "ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    """In JSON and CSV, with its unit: `median_ms`."""
    title: str
    unit: str = ""
    style: Literal["text", "fixed", "scientific", "percent"] = "text"
    """Everything but text stands at the right; `percent` shows a share of 1."""
    decimals: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures, as they were recorded; rounded only where they are shown."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    ours: frozenset[int] = frozenset()
    """Rows to set off."""
    alarms: frozenset[int] = frozenset()
    """Rows that call for attention; what they say is also in words."""
    is_open: bool = False
    """Whether it is shown beside the section's charts before one asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a chart, from zero."""

    label: str
    value: float
    text: str
    """What stands behind the bar: the value with its unit."""
    low: float | None = None
    """Interval of the value, drawn as a whisker."""
    high: float | None = None
    floor: float | None = None
    """What it could not fall below, drawn as a part of the bar."""
    tone: Tone = "plain"
    heading: str = ""
    """Begins a new group of bars with this line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Horizontal bars in one unit."""

    title: str
    summary: str
    """What it shows in a sentence, for those who do not see it."""
    unit: str
    bars: tuple[Bar, ...]
    key: tuple[tuple[str, Tone], ...] = ()
    """What the tones mean, where it is not said by the labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a chart."""

    label: str
    unit: str = ""
    log: bool = False
    from_zero: bool = False
    whole: bool = False
    """Its values are whole numbers, and so are its ticks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark."""

    x: float
    y: float
    title: str
    """What a pointer resting on it shows."""
    label: str = ""
    """Written beside it; for the few that matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Marks that belong together."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["dots", "line", "steps"] = "dots"
    tone: Tone = "plain"
    shape: Shape = "circle"
    in_key: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """A straight line: horizontal at `y`, vertical at `x`, or through both points of `through`."""

    label: str
    x: float | None = None
    y: float | None = None
    through: tuple[tuple[float, float], tuple[float, float]] | None = None
    tone: Tone = "alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Points or lines over two axes."""

    title: str
    summary: str
    """What it shows in a sentence, for those who do not see it."""
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One subject, with what is to be said of it."""

    name: str
    title: str
    lead: str
    """What to see here, in a sentence or two."""
    charts: tuple[BarChart | Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """What makes the figures doubtful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One figure of the summary."""

    title: str
    value: str
    unit: str
    detail: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    version: str
    """Of tvm-mobilenet, which wrote it."""
    date: str
    """UTC, ISO 8601, when it was written."""
    meta: dict[str, int] = field(default_factory=dict)
    """Further facts for JSON: whether something regressed."""
