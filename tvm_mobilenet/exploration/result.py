"""What an exploration found, as it is written to `explore.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from tvm_mobilenet.exploration.candidates import Candidate
from tvm_mobilenet.exploration.choice import Budget, Measured, choose, front_by
from tvm_mobilenet.exploration.journal import Conditions

__all__ = ["Exploration", "Outcome", "exploration"]

# History: 1, the first.
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate, and what became of it."""

    candidate: Candidate
    status: str
    """`measured`, `over budget`, `failed`; or why it was not measured: `dominated`, `too slow`,
    `too large`, `not reached`."""
    reason: str
    predicted: float | None
    """Its cost before it was measured, or as it would be."""
    measured: Measured | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        probe = self.measured.probe if self.measured else None
        return {
            "model": self.candidate.model,
            "family": self.candidate.family,
            "dtype": self.candidate.dtype,
            "accuracy": self.candidate.accuracy,
            "macs": self.candidate.macs,
            "weight_bytes": self.candidate.weight_bytes,
            "status": self.status,
            "reason": self.reason,
            "predicted": self.predicted,
            "cost": probe.cost if probe else None,
            "low": probe.low if probe else None,
            "high": probe.high if probe else None,
            "size_bytes": probe.size_bytes if probe else None,
            "peak_bytes": probe.peak_bytes if probe else None,
            "warnings": list(probe.warnings) if probe else [],
            "date": probe.date if probe else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """A choice, and what it was made from."""

    conditions: Conditions
    threads: int
    """That did compute."""
    budget: Budget
    accuracy_source: str
    outcomes: tuple[Outcome, ...]
    """Of every candidate, the most accurate first."""
    best: Measured | None
    """The most accurate within the budget; None where none fits."""
    runner_up: Measured | None
    front: tuple[str, ...]
    """No other measured model is as accurate at no greater cost; the cheapest first. Those beyond
    the budget count too: they show what more would bring."""
    front_by_size: tuple[str, ...]
    """The same for the size of the library, of the models within the budget."""
    front_by_memory: tuple[str, ...]
    """The same for the memory that the model adds; empty where it is not known."""
    complete: bool
    notes: tuple[str, ...]
    date: str

    @property
    def is_emulated(self) -> bool:
        """Whether costs are counts of instructions, and no times."""
        return self.conditions.unit == "Minstr"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "format_version": _FORMAT_VERSION,
            "target": self.conditions.target,
            "device": self.conditions.device,
            "threads": self.threads,
            "unit": self.budget.unit,
            "budget": self.budget.cost,
            "budget_mb": self.budget.size_mb,
            "accuracy_source": self.accuracy_source,
            "best": self.best.candidate.name if self.best else None,
            "runner_up": self.runner_up.candidate.name if self.runner_up else None,
            "front": list(self.front),
            "front_by_size": list(self.front_by_size),
            "front_by_memory": list(self.front_by_memory),
            "candidates": [outcome.to_dict() for outcome in self.outcomes],
            "is_emulated": self.is_emulated,
            "complete": self.complete,
            "notes": list(self.notes),
            "date": self.date,
            "conditions": self.conditions.model_dump(mode="json"),
        }


def exploration(
    outcomes: Sequence[Outcome],
    budget: Budget,
    conditions: Conditions,
    accuracy_source: str,
    notes: Sequence[str],
    *,
    complete: bool,
) -> Exploration:
    """Choose among what was measured."""
    found = [outcome.measured for outcome in outcomes if outcome.measured is not None]
    fitting = [one for one in found if one.fits(budget)]
    best, runner_up = choose(found, budget)
    said = list(notes)
    if conditions.unit == "Minstr":
        said.append(
            "costs are instructions counted on an emulated processor: no times, and which of two "
            "models is faster on a board can differ"
        )
    if any(outcome.candidate.dtype == "int8" for outcome in outcomes):
        said.append(
            "published int8 accuracies are those of quantization-aware training; calibrated "
            "weights can lose more: see what `quantize` reports, or give --accuracy"
        )
    if best is not None and best.probe.high is not None and best.probe.high > budget.cost:
        said.append(
            f"{best.candidate.name}: a quarter of its inferences took {best.probe.high:.3g} "
            f"{budget.unit} or more, beyond the budget; measure it again on a quiet device"
        )
    noisy = [one.candidate.name for one in found if one.probe.warnings]
    if noisy:
        said.append(f"noisy: {', '.join(noisy)}")
    return Exploration(
        conditions=conditions,
        threads=found[0].probe.threads if found else conditions.threads or 1,
        budget=budget,
        accuracy_source=accuracy_source,
        outcomes=tuple(outcomes),
        best=best,
        runner_up=runner_up,
        front=front_by(found, lambda one: one.cost),
        front_by_size=front_by(fitting, lambda one: one.probe.size_bytes),
        front_by_memory=front_by(fitting, lambda one: one.probe.peak_bytes),
        complete=complete,
        notes=tuple(said),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
