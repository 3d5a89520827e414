"""Integer kernels without weights (sums, means, the quantized input): bytes of a turn, threads."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.integer.elementwise import ElementwisePlan, plan_elementwise
from tvm_mobilenet.schedule.integer.workload import IntegerPoolWorkload, QuantizeWorkload
from tvm_mobilenet.tuning.spaces.common import Change, frozen_fault, kind_fault, register_fault

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.workload import IntegerAddWorkload
    from tvm_mobilenet.targets import Cpu

    Workload = IntegerPoolWorkload | IntegerAddWorkload | QuantizeWorkload

__all__ = ["dimensions", "fault", "normal", "start"]

_FREE = frozenset({"block", "tasks"})
_BLOCKS = (16, 32, 64)
_INTERLEAVED = (16, 32)
"""Of the quantized input: what is written together holds every channel."""

start = functools.lru_cache(maxsize=1024)(plan_elementwise)


def dimensions(
    w: Workload, plan: ElementwisePlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: bytes of a turn, threads."""
    tasks = [1, cpu.cores] if is_split_free and cpu.cores > 1 else []
    return [[{"block": block} for block in _blocks(w)], [{"tasks": count} for count in tasks]]


def _blocks(w: Workload) -> tuple[int, ...]:
    return _INTERLEAVED if isinstance(w, QuantizeWorkload) else _BLOCKS


def normal(w: Workload, plan: ElementwisePlan) -> ElementwisePlan:
    """Return the plan: every one is a kernel of its own."""
    return plan


def fault(w: Workload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = kind_fault(plan, ElementwisePlan) or frozen_fault(plan, start(w, cpu), _FREE)
    if wrong is not None:
        return wrong
    if plan.tasks not in (1, cpu.cores):
        return f"tasks {plan.tasks} is neither 1 nor the number of cores, {cpu.cores}"
    if plan.block not in _blocks(w):
        return f"block {plan.block} is none of {_blocks(w)}"
    # Means keep a total for each byte of a block.
    is_mean = isinstance(w, IntegerPoolWorkload)
    return register_fault(plan.block // plan.lanes + 2, cpu) if is_mean else None
