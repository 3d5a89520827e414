"""Global pools: the sums in flight and the threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.pool import PoolPlan
from tvm_mobilenet.schedule.pool import plan_pool as start
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import PoolWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "normal", "start"]

_FREE = frozenset({"chains", "is_parallel"})
_MOST_CHAINS = 16


def dimensions(
    w: PoolWorkload, plan: PoolPlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: sums in flight, threads."""
    most = min(_MOST_CHAINS, w.pixels)
    return [[{"chains": n} for n in range(1, most + 1)], split(cpu, is_split_free)]


def normal(w: PoolWorkload, plan: PoolPlan) -> PoolPlan:
    """Return the plan: every one is a kernel of its own."""
    return plan


def fault(w: PoolWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    return (
        kind_fault(plan, PoolPlan)
        or frozen_fault(plan, start(w, cpu), _FREE)
        or range_fault("chains", plan.chains, min(_MOST_CHAINS, w.pixels))
    )
