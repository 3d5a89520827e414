"""How numbers are spelled, and the few statistics that a report takes of recorded series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, quantiles

from tvm_mobilenet.report.data import Cell, Column

__all__ = [
    "geometric_mean",
    "middle_half",
    "plain_cell",
    "plural",
    "scientific",
    "short",
    "shown",
    "tidy",
]


def middle_half(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of recorded values and the quartiles around it.

    The quartiles are the noise of the series: wider than the uncertainty of its median, so that
    two intervals that do not even touch differ by more than a machine's moods.
    """
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), low, high


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def short(value: float, digits: int = 3) -> str:
    """Spell a number with so many significant digits and no exponent where it can be avoided."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{max(digits - 2, 0)}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def tidy(value: float) -> str:
    """Spell the number of a tick: no more digits than it has."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        power = f"10{''.join(_SUPERSCRIPT[c] for c in str(int(exponent)))}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:,.6g}" if abs(value) >= 1000 else f"{value:.6g}"


_SUPERSCRIPT = dict(zip("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", strict=True))


def scientific(value: float) -> str:
    """Spell a small number as `1.3·10⁻⁵`, which no line breaks."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    power = f"10{''.join(_SUPERSCRIPT[c] for c in str(int(exponent)))}"
    return power if mantissa == "1.0" else f"{mantissa}·{power}"


def plural(count: int, noun: str) -> str:
    """Return `1 thread`, `2 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shown(cell: Cell, column: Column) -> str:
    """Spell a cell as its column wants it; nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, str) or column.style == "text":
        return str(cell)
    if column.style == "scientific":
        return "0" if cell == 0 else f"{cell:.{column.decimals}e}"
    if column.style == "percent":
        return f"{100 * cell:.{column.decimals}f}"
    return f"{cell:,.{column.decimals}f}"


def plain_cell(cell: Cell) -> Cell:
    """Return a cell for JSON and CSV: a number that they have no word for becomes None."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
