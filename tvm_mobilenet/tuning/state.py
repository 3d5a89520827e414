"""What a search knows of each task while it goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.records import Plan, plan_to_json, workload_to_json
from tvm_mobilenet.tuning.search import plan_key
from tvm_mobilenet.tuning.target_space import AnySpace
from tvm_mobilenet.tuning.tasks import Task

__all__ = ["FADING", "Candidate", "TaskState"]

_NEAR_FLOOR = 1.03
_PATIENCE = 4
"""Rounds in a row without a better plan after which a task is left alone."""
FADING = 0.6
"""What is expected of a task's next round, after one that brought nothing."""


@dataclass
class Candidate:
    """One plan of one task, as far as it has come."""

    plan: Plan
    library: str = ""
    """In base 64."""
    spills: int = 0
    """Vectors that its busiest loop keeps on the stack for want of registers."""
    figures: Figures | None = None
    note: str = ""
    """Why it was rejected."""

    @property
    def key(self) -> str:
        """What tells it from other plans."""
        return plan_key(self.plan)

    @property
    def cost(self) -> float:
        """What it takes; infinite as long as that is not known."""
        return self.figures.cost if self.figures else float("inf")


@dataclass
class TaskState:
    """One task in the course of a search."""

    task: Task
    space: AnySpace
    floor: float = 0.0
    start: Candidate = field(init=False)
    """The computed plan."""
    incumbent: Candidate = field(init=False)
    """The plan to beat."""
    ratio: float = 1.0
    """Of the incumbent's cost to the computed plan's, in the contest that it won."""
    is_confirmed: bool = False
    """Whether the incumbent is accepted in the store."""
    known: set[str] = field(default_factory=set)
    """Keys of the plans that were measured or rejected."""
    measured: dict[str, Candidate] = field(default_factory=dict)
    trials: int = 0
    rounds: int = 0
    idle_rounds: int = 0
    """Rounds in a row that brought nothing."""
    trial_seconds: float = 1.0
    """What building and measuring its last candidate took."""
    stopped: str = ""
    """Why the search goes no further here; empty while it does."""
    fault: str = ""
    """Why the task cannot be tuned."""

    def __post_init__(self) -> None:
        self.start = Candidate(self.space.start)
        self.incumbent = self.start

    @property
    def is_open(self) -> bool:
        """Whether there is more to try."""
        return not self.stopped and not self.fault

    @property
    def promise(self) -> float:
        """What of an inference may be won by a second's search, less the longer nothing was."""
        gap = max(0.0, self.incumbent.cost - self.floor) * self.task.calls
        return gap * FADING**self.idle_rounds / self.trial_seconds

    def best_plans(self) -> list[Plan]:
        """Return the plans that further ones are derived from."""
        ranked = sorted(self.measured.values(), key=lambda candidate: candidate.cost)
        first = [self.incumbent.plan]
        return first + [c.plan for c in ranked if c.key != self.incumbent.key]

    def entrant(self, candidate: Candidate) -> Entrant:
        """Return a candidate in the form in which it is measured."""
        return Entrant(
            workload_to_json(self.task.workload), plan_to_json(candidate.plan), candidate.library
        )

    def finish_round(self, *, has_improved: bool) -> None:
        """Note what a round brought, and whether another is worth while."""
        self.rounds += 1
        self.idle_rounds = 0 if has_improved else self.idle_rounds + 1
        if self.incumbent.cost <= _NEAR_FLOOR * self.floor:
            self.stopped = "near the floor"
        elif self.idle_rounds >= _PATIENCE:
            self.stopped = f"nothing better in {self.idle_rounds} rounds"

    def forget_libraries(self, keep: Iterable[Candidate]) -> None:
        """Drop the libraries of all but the given candidates."""
        kept = {id(candidate) for candidate in keep}
        for candidate in self.measured.values():
            if id(candidate) not in kept:
                candidate.library = ""
