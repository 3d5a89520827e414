"""What a model will cost, from its multiply-adds and what was measured so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tvm_mobilenet.exploration.candidates import Candidate

__all__ = ["Known", "Prediction", "predict"]

_MARGINS = {"interpolated": 0.15, "same family": 0.35, "other families": 0.6, "another dtype": 0.9}
"""How far off a prediction may be, as a share of it, before there is experience: between two
measured models of a family; from one of its models, or beyond those measured; from other families,
whose depthwise layers and activations weigh otherwise; from another dtype, where all depends on the
processor's instructions."""
_SAFETY = 1.5
"""Times the largest error that predictions on the same grounds have shown."""
_SLOPES = (0.6, 1.2)
"""Bounds of the exponent: below 1, because of what an inference costs however small it is."""


@dataclass(frozen=True, slots=True)
class Known:
    """A candidate whose cost was measured."""

    candidate: Candidate
    cost: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A cost, and how far off it may be."""

    cost: float
    low: float
    high: float
    grounds: str
    """`interpolated`, `same family`, `other families` or `another dtype`."""


def predict(
    candidate: Candidate,
    known: Sequence[Known],
    errors: dict[str, list[float]] | None = None,
) -> Prediction | None:
    """Predict the cost of a candidate; None where nothing was measured yet.

    Within a family the cost is taken to be a power of the multiply-adds between the two nearest
    measured models. From other families it is their median cost for a multiply-add, of the same
    dtype if there is one.

    Args:
        candidate: what to predict.
        known: what was measured.
        errors: relative errors of earlier predictions, by their grounds.
    """
    if not known:
        return None
    family = [
        one
        for one in known
        if (one.candidate.family, one.candidate.dtype) == (candidate.family, candidate.dtype)
    ]
    if family:
        cost, grounds = _within(candidate, family)
    else:
        alike = [one for one in known if one.candidate.dtype == candidate.dtype]
        cost = candidate.macs * median(one.cost / one.candidate.macs for one in alike or known)
        grounds = "other families" if alike else "another dtype"
    margin = max(_MARGINS[grounds] / 2, _SAFETY * max((errors or {}).get(grounds, ()), default=0.0))
    if not (errors or {}).get(grounds):
        margin = _MARGINS[grounds]
    margin = min(margin, 0.9)
    return Prediction(cost, cost * (1 - margin), cost * (1 + margin), grounds)


def _within(candidate: Candidate, family: Sequence[Known]) -> tuple[float, str]:
    """Return the cost by the nearest models of the family, and what kind of guess it is."""
    macs = candidate.macs
    below = [one for one in family if one.candidate.macs <= macs]
    above = [one for one in family if one.candidate.macs > macs]

    def distance(one: Known) -> float:
        return abs(math.log(one.candidate.macs / macs))

    if below and above:
        pair = [min(below, key=distance), min(above, key=distance)]
        grounds = "interpolated"
    else:
        pair = sorted(family, key=distance)[:2]
        grounds = "same family"
    nearest = min(pair, key=distance)
    slope = 1.0
    if len(pair) == 2 and pair[0].candidate.macs != pair[1].candidate.macs:
        a, b = pair
        slope = math.log(b.cost / a.cost) / math.log(b.candidate.macs / a.candidate.macs)
        slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
    return nearest.cost * (macs / nearest.candidate.macs) ** slope, grounds
