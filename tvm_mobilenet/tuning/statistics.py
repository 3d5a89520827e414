"""When a series of times is long enough, and which of two kernels is faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Ratio", "is_tight", "typical", "wins"]

_TIGHT = 0.03
"""Spread, as a share, at which a series says enough to rank candidates by."""
_LEAST = 12
_WIN = 0.995
"""A winner's ratio must lie below this with its whole interval: half a per cent is not worth a
change of plan."""


def typical(values: Sequence[float]) -> float:
    """Return the time that a call takes when nothing disturbs it: the lowest fifth's upper end.

    What disturbs a call only ever adds to it, so the low end repeats where the median does not.
    """
    return _quantile(values, 0.2)


def is_tight(values: Sequence[float]) -> bool:
    """Tell whether the low end of a series is narrow enough."""
    if len(values) < _LEAST:
        return False
    return _quantile(values, 0.35) - _quantile(values, 0.05) <= _TIGHT * typical(values)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]


@dataclass(frozen=True)
class Ratio:
    """One kernel's time over another's, taken turn by turn: median and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Compare two series whose entries were taken in the same rounds.

        The interval is that between two order statistics: nine times in ten it holds the median of
        such ratios, whatever their distribution.
        """
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        count = len(ratios)
        reach = math.ceil(1.645 * math.sqrt(count) / 2)
        low = max(0, count // 2 - reach)
        high = min(count - 1, (count - 1) // 2 + reach)
        return cls(median(ratios), ratios[low], ratios[high])


def wins(ratio: Ratio) -> bool:
    """Tell whether a ratio to the incumbent is a win beyond doubt."""
    return ratio.high < _WIN
