"""How long a candidate is timed, here and on a board, and how several take turns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from tvm_mobilenet.tuning.statistics import typical

__all__ = ["BATCH_NS", "BURST_NS", "HOPELESS", "LEAST_NS", "MOST_NS", "Contestant", "take_turns"]

BATCH_NS = 20_000
"""Calls shorter than this are timed several at a time: the clock and the call cost about a
microsecond, on a board up to a tenth of this."""
LEAST_NS, MOST_NS = 8_000_000, 60_000_000
"""How long one candidate is timed."""
HOPELESS = 1.5
"""A candidate that takes so many times the best one's time is not timed any longer."""
BURST_NS = 1_500_000
"""One turn in a contest."""


class Contestant(Protocol):
    """A candidate that is loaded where it is to run."""

    def check(self, expected: npt.NDArray[Any]) -> float:
        """Compute once; returns the largest difference, raises where it is beyond tolerance."""

    def burst(self) -> list[float]:
        """Time runs for one turn; returns nanoseconds a run."""


def take_turns(
    contestants: Sequence[Contestant], expected: npt.NDArray[Any], *, rounds: int, seed: int
) -> list[list[float]]:
    """Time candidates in an order shuffled each round; returns each one's milliseconds a round.

    All are checked before and after.
    """
    for one in contestants:
        one.check(expected)
    shuffle = random.Random(seed).shuffle
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        order = list(range(len(contestants)))
        shuffle(order)
        for index in order:
            times[index].append(typical(contestants[index].burst()) / 1e6)
    for one in contestants:
        one.check(expected)
    return times
