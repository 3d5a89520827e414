"""What earlier searches recorded of a task: a plan to begin with, and figures to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.tuning.measurer import Figures
from tvm_mobilenet.tuning.recorded import best_first
from tvm_mobilenet.tuning.records import LineError, TrialRecord, canonical, plan_from
from tvm_mobilenet.tuning.state import Candidate, TaskState
from tvm_mobilenet.tuning.target_space import fault_for

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.search import CostModel

__all__ = ["learn", "recorded_plan"]


def recorded_plan(
    state: TaskState, records: Sequence[TrialRecord], target: TargetSpec
) -> tuple[Any, float] | None:
    """Return the best plan recorded for a task and its ratio to the computed one."""
    for record in best_first(records, target.cpu.cores):
        try:
            plan = plan_from(record.plan)
        except LineError:
            continue
        if fault_for(state.task.workload, plan, target) is None:
            return plan, record.ratio or 1.0
    return None


def learn(state: TaskState, records: Sequence[TrialRecord], costs: CostModel) -> None:
    """Take in what earlier searches measured, each against its own computed plan."""
    starts = [
        r.cost
        for r in records
        if r.cost and r.verdict == "measured" and canonical(r.plan) == state.start.key
    ]
    for record in records:
        key = canonical(record.plan)
        if record.verdict == "rejected":
            state.known.add(key)
        elif record.cost and starts and key not in state.known:
            try:
                plan = plan_from(record.plan)
            except LineError:
                continue
            state.known.add(key)
            ratio = record.cost / median(starts)
            costs.add(state.task.workload, plan, ratio)
            cost = ratio * state.start.cost
            state.measured.setdefault(
                key,
                Candidate(
                    plan,
                    figures=Figures(
                        cost=cost, repeats=1, is_tight=False, error=record.error or 0.0
                    ),
                ),
            )
