"""What a search found, task by task, and what it spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvm_mobilenet.tuning.state import TaskState

__all__ = ["TaskReport", "TuningReport", "task_report"]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task after a search."""

    name: str
    calls: int
    """In one inference."""
    untuned: float | None
    """Cost of the computed plan, in the unit of the measurer; None where it could not be measured.
    """
    best: float | None
    ratio: float | None
    """Of the best plan's cost to the computed plan's, taken turn by turn."""
    floor: float
    trials: int
    status: str
    """`tuned`, `computed plan stands`, or why it could not be tuned."""
    stopped: str
    """Why the search went no further; empty where the budget ended it."""


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """A search and what it spent."""

    model: str
    target: str
    threads: int
    unit: str
    """Of the costs: `ms`, or `Minstr`."""
    log: str
    """The file that the records are in."""
    tasks: tuple[TaskReport, ...]
    trials: int
    """Candidates of this run that were measured or rejected."""
    built: int
    """Builds of this run that ended, those of candidates that were not measured any more included.
    """
    seconds: float
    """Of this run."""
    spent_before: dict[str, float]
    """Trials and seconds of earlier runs of the same search."""
    left_as_computed: tuple[str, ...] = ()
    """Kernels of the model that no search changes."""
    is_dry_run: bool = False

    @property
    def candidates_per_s(self) -> float:
        """Candidates built, checked and measured in a second."""
        return self.trials / self.seconds if self.seconds else 0.0

    @property
    def built_per_s(self) -> float:
        """Candidates built in a second."""
        return self.built / self.seconds if self.seconds else 0.0

    @property
    def untuned(self) -> float:
        """Cost of all kernels of one inference with computed plans."""
        return sum(task.calls * (task.untuned or 0.0) for task in self.tasks)

    @property
    def best(self) -> float:
        """The same with the best plans, by the contests that they won."""
        return sum(task.calls * (task.untuned or 0.0) * (task.ratio or 1.0) for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **asdict(self),
            "candidates_per_s": self.candidates_per_s,
            "built_per_s": self.built_per_s,
            "untuned": self.untuned,
            "best": self.best,
        }


def task_report(state: TaskState) -> TaskReport:
    """Sum up one task."""
    status = "computed plan stands"
    if state.fault:
        status = f"not tuned: {state.fault}"
    elif state.incumbent is not state.start:
        status = "tuned"
    return TaskReport(
        name=state.task.name,
        calls=state.task.calls,
        untuned=state.start.figures.cost if state.start.figures else None,
        best=state.incumbent.figures.cost if state.incumbent.figures else None,
        ratio=state.ratio if state.start.figures else None,
        floor=state.floor,
        trials=state.trials,
        status=status,
        stopped=state.stopped,
    )


def overall(states: Sequence[TaskState]) -> float:
    """Return the share of the computed plans' time that the best plans take."""
    untuned = sum(s.task.calls * s.start.cost for s in states if s.start.figures)
    best = sum(s.task.calls * s.start.cost * s.ratio for s in states if s.start.figures)
    return best / untuned if untuned else 1.0
