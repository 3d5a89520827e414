"""Which of the measured models nothing beats, and which to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm_mobilenet.exploration.candidates import Candidate
from tvm_mobilenet.exploration.journal import ProbeRecord

__all__ = ["Budget", "Measured", "choose", "front_by"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model may need at most."""

    cost: float
    """In `unit`, for one inference."""
    unit: str
    size_mb: float | None = None
    """Of the library, millions of bytes."""

    def __str__(self) -> str:
        """Spell it: `20 ms and 4 MB`."""
        text = f"{self.cost:g} {self.unit}"
        return text if self.size_mb is None else f"{text} and {self.size_mb:g} MB"


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate and what was found of it."""

    candidate: Candidate
    probe: ProbeRecord

    @property
    def cost(self) -> float:
        """Of one inference, in the unit of the budget."""
        assert self.probe.cost is not None
        return self.probe.cost

    def fits(self, budget: Budget) -> bool:
        """Tell whether it is within the budget."""
        size = self.probe.size_bytes
        is_small = budget.size_mb is None or (size is not None and size <= budget.size_mb * 1e6)
        return self.cost <= budget.cost and is_small


def front_by(
    found: Sequence[Measured], need: Callable[[Measured], float | None]
) -> tuple[str, ...]:
    """Return the models that no other is at least as accurate as with no greater need.

    Args:
        found: the measured models.
        need: what is to be small; models of which it is not known are left out.

    Returns:
        Names, the smallest need first. Of equals the first one stays.
    """
    known = [(value, one) for one in found if (value := need(one)) is not None]
    known.sort(key=lambda pair: (pair[0], -pair[1].candidate.accuracy))
    front: list[str] = []
    best = -1.0
    for _, one in known:
        if one.candidate.accuracy > best:
            front.append(one.candidate.name)
            best = one.candidate.accuracy
    return tuple(front)


def choose(found: Sequence[Measured], budget: Budget) -> tuple[Measured | None, Measured | None]:
    """Return the most accurate model within the budget, and the runner-up.

    The runner-up is the most accurate of those that need less than the best, in cost or in size:
    what one would turn to if the best turns out too dear after all. Of equally accurate models the
    cheaper one comes first.
    """
    fitting = [one for one in found if one.fits(budget)]
    fitting.sort(key=lambda one: (-one.candidate.accuracy, one.cost))
    if not fitting:
        return None, None
    best = fitting[0]
    size = best.probe.size_bytes or 0
    second = next(
        (
            one
            for one in fitting[1:]
            if one.cost < best.cost or (one.probe.size_bytes or size) < size
        ),
        None,
    )
    return best, second
