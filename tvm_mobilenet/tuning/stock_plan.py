"""A candidate of MetaSchedule's stock rules, as a log spells it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILY", "StockPlan"]

FAMILY = "stock"
"""Of the records and tasks of the comparison; no kernel of a model is of it."""


@dataclass(frozen=True, kw_only=True)
class StockPlan:
    """A schedule that MetaSchedule made; there to be compared with, never to be compiled."""

    trace: str
    """MetaSchedule's trace, as JSON."""
    packed: tuple[int, ...] = ()
    """Shape that the schedule wants the weights in; empty where it takes them as they are."""
