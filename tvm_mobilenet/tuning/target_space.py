"""The space of a target, and what its plans may not be: those of its CPU, or of its GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.tuning.gpu_space import GpuSpace
from tvm_mobilenet.tuning.space import Space, plan_fault

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["AnySpace", "fault_for", "space_for"]

AnySpace = Space | GpuSpace


def space_for(
    workload: TunableWorkload, target: TargetSpec, *, is_split_free: bool = True
) -> AnySpace:
    """Return all plans for a workload; `is_split_free` as in `Space`."""
    if target.gpu is not None:
        return GpuSpace(workload, target.gpu)
    return Space(workload, target.cpu, is_split_free)


def fault_for(workload: TunableWorkload, plan: Any, target: TargetSpec) -> str | None:
    """Return why a plan cannot be used for a workload on a target, or None."""
    if target.gpu is not None:
        return families.plan_fault(workload, plan, target.gpu)
    return plan_fault(workload, plan, target.cpu)
