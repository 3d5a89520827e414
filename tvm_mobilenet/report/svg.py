"""The few shapes of SVG that the charts need, as text; the style sheet gives them their colours."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from tvm_mobilenet.report.data import Shape

__all__ = ["attributes", "cut", "figure", "line", "mark", "path", "rectangle", "text", "text_width"]

_CHARACTER = 7.2
"""Width of an average character at 12 pixels, in pixels: that of DejaVu Sans, among the wider of
the fonts that systems use."""


def attributes(**values: object) -> str:
    """Spell attributes; `_` stands for `-`, and a trailing `_` keeps clear of Python's words."""
    return "".join(
        f" {name.rstrip('_').replace('_', '-')}={quoteattr(_number(value))}"
        for name, value in values.items()
        if value is not None and value != ""
    )


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    return str(value)


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "") -> str:
    """Write words at a place."""
    return f"<text{attributes(x=x, y=y, class_=kind, text_anchor=anchor)}>{escape(content)}</text>"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a straight line."""
    return f"<line{attributes(x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)}/>"


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Draw a filled rectangle."""
    return f"<rect{attributes(x=x, y=y, width=max(width, 0.5), height=height, class_=kind)}/>"


def path(points: list[tuple[float, float]], kind: str, *, steps: bool = False) -> str:
    """Draw a line through points, or one that goes level from each to the next."""
    parts = [f"M{_number(points[0][0])} {_number(points[0][1])}"]
    for x, y in points[1:]:
        parts.append(f"H{_number(x)}V{_number(y)}" if steps else f"L{_number(x)} {_number(y)}")
    return f"<path{attributes(d=''.join(parts), class_=kind)}/>"


def mark(x: float, y: float, shape: Shape, kind: str, title: str, size: float = 4.5) -> str:
    """Draw a data point; resting on it shows `title`."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    if shape in ("circle", "ring"):
        radius = size if shape == "circle" else size + 2.5
        kind = kind if shape == "circle" else f"{kind} hollow"
        return f"<circle{attributes(cx=x, cy=y, r=radius, class_=kind)}>{inside}</circle>"
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    }
    if shape in corners:
        spots = "".join(
            f"{'M' if n == 0 else 'L'}{_number(x + size * dx)} {_number(y + size * dy)}"
            for n, (dx, dy) in enumerate(corners[shape])
        )
        return f"<path{attributes(d=spots + 'Z', class_=kind)}>{inside}</path>"
    left, right, top, bottom = (_number(v) for v in (x - size, x + size, y - size, y + size))
    cross = f"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"
    return f"<path{attributes(d=cross, class_=f'{kind} stroke')}>{inside}</path>"


def figure(width: float, height: float, body: list[str], label: str) -> str:
    """Wrap shapes into a picture of a size, with `label` for those who do not see it."""
    head = attributes(
        viewBox=f"0 0 {_number(float(width))} {_number(float(height))}",
        role="img",
        aria_label=label,
    )
    return f"<svg{head}>{''.join(body)}</svg>"


def text_width(content: str) -> float:
    """Return about how wide words are, in pixels."""
    return _CHARACTER * len(content)


def cut(content: str, width: float) -> str:
    """Shorten words to a width; their middle goes, because kernels differ in their ends."""
    most = max(int(width / _CHARACTER), 4)
    if len(content) <= most:
        return content
    head = (most - 1) // 2
    return f"{content[:head]}…{content[-(most - 1 - head) :]}"
