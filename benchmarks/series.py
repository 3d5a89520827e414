"""Statistics of one engine's turns, and of two engines' turns taken in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median, quantiles

__all__ = ["NOISY_SPREAD", "Series", "fastest", "paired_ratio"]

NOISY_SPREAD = 0.05
"""Interquartile range of the rounds' medians over their median; beyond this the table says so."""


@dataclass(frozen=True, slots=True)
class Series:
    """What one engine did at one thread count: latencies in ms, one tuple a round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def round_medians_ms(self) -> list[float]:
        """The median of each round."""
        return [median(r) for r in self.rounds]

    @property
    def median_ms(self) -> float:
        """The median of the rounds' medians."""
        return median(self.round_medians_ms)

    @property
    def min_ms(self) -> float:
        """The fastest inference of all."""
        return min(chain.from_iterable(self.rounds))

    @property
    def p90_ms(self) -> float:
        """The latency that nine inferences in ten stay below, over all rounds."""
        return _quantile(list(chain.from_iterable(self.rounds)), 90, 100)

    @property
    def spread(self) -> float:
        """Interquartile range of the rounds' medians over their median."""
        medians = self.round_medians_ms
        return (_quantile(medians, 3, 4) - _quantile(medians, 1, 4)) / self.median_ms

    @property
    def is_noisy(self) -> bool:
        """Whether the rounds differ so much that small ratios mean little."""
        return self.spread > NOISY_SPREAD


def _quantile(values: Sequence[float], cut: int, parts: int) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=parts, method="inclusive")[cut - 1]


def paired_ratio(series: Series, reference: Series) -> float:
    """Return the median over rounds of `series`' latency over that of `reference`.

    Both were measured in each round, moments apart: what slowed the machine in a round slowed both,
    and drops out of their ratio.
    """
    pairs = zip(series.round_medians_ms, reference.round_medians_ms, strict=True)
    return median(mine / theirs for mine, theirs in pairs)


def fastest(series: Sequence[Series]) -> int:
    """Return the index of the series that comes closest to the best of all, round by round.

    With quiet rounds that is the one with the lowest median; with noisy ones it is the one whose
    ratio to the others is below 1, which the lowest median need not be. 0 where there are none.
    """
    best = [min(medians) for medians in zip(*(s.round_medians_ms for s in series), strict=True)]
    gaps = [
        median(mine / theirs for mine, theirs in zip(s.round_medians_ms, best, strict=True))
        for s in series
    ]
    return gaps.index(min(gaps)) if gaps else 0
