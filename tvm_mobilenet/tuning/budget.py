"""What a search may spend, and what of it is left."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mobilenet.tuning.ledger import Ledger

__all__ = ["Budget", "Purse"]


@dataclass(frozen=True)
class Budget:
    """What a search may spend in all, earlier runs of the same search included. One is None."""

    trials: int | None = None
    seconds: float | None = None


class Purse:
    """A budget, and the ledger of what was taken from it."""

    def __init__(self, budget: Budget, ledger: Ledger) -> None:
        self.budget = budget
        self._ledger = ledger

    @property
    def has_any(self) -> bool:
        """Whether something is left."""
        if self.budget.trials is not None:
            return self.trials_left(self.budget.trials) > 0
        return self.seconds_left > 0

    def trials_left(self, trials: int) -> int:
        """Return how many candidates are left of so many."""
        return trials - self._ledger.spent_trials - self._ledger.trials

    @property
    def seconds_left(self) -> float:
        """Seconds that are left, or that the candidates left will take at the rate so far."""
        elapsed = self._ledger.seconds
        if self.budget.seconds is not None:
            return self.budget.seconds - self._ledger.spent_seconds - elapsed
        assert self.budget.trials is not None
        left = self.trials_left(self.budget.trials)
        return left * elapsed / max(1, self._ledger.trials)
