"""From figures to places on a page: linear and logarithmic scales, and where their ticks stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Scale", "scale_for"]

_STEPS = (1, 2, 2.5, 5, 10)
_FEW_DECADES = 0.6
"""Below this a logarithmic scale has ticks at even steps, as 10, 15, 20."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low`..`high` to `start`..`end`, in pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return where a value stands; what lies beyond the ends is put at them."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def scale_for(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    from_zero: bool = False,
    whole: bool = False,
    ticks: int = 6,
) -> Scale:
    """Make a scale that holds `values`, with about so many ticks.

    A logarithmic one leaves out what is not above 0.
    """
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        return _logarithmic(min(positive), max(positive), start, end, ticks)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        low, high = (0.0, 2 * high) if high > 0 else (low - 1, high + 1)
    step = _step((high - low) / ticks)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(number * step for number in range(first, last + 1))
    return Scale(marks[0], marks[-1], start, end, False, marks)


def _step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(factor * size for factor in _STEPS if factor * size >= rough * 0.999)


def _logarithmic(low: float, high: float, start: float, end: float, ticks: int) -> Scale:
    """Cover the values with a little room; whole decades where there are many, 1-2-5 otherwise."""
    low, high = low / 1.25, high * 1.25
    decades = math.log10(high / low)
    if decades < _FEW_DECADES:
        step = _step((high - low) / ticks)
        first, last = math.ceil(low / step), math.floor(high / step)
        even = tuple(number * step for number in range(first, last + 1))
        return Scale(low, high, start, end, True, even)
    factors: tuple[int, ...] = (
        (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 2, 3, 5, 7)
    )
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [
        factor * 10.0**power
        for power in range(first, last + 1)
        for factor in factors
        if low <= factor * 10.0**power <= high
    ]
    while len(marks) > 2 * ticks:
        marks = marks[::2]
    return Scale(low, high, start, end, True, tuple(marks))
