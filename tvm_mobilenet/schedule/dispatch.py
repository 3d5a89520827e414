"""Kernels for a target, whatever it computes on: its CPU, or its GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.schedule.fallback import schedule_fallback
from tvm_mobilenet.schedule.mali.fallback import check_parameters, schedule_gpu_fallback
from tvm_mobilenet.schedule.mali.select import select_gpu_kernels
from tvm_mobilenet.schedule.select import PlanSource, Selection, select_kernels

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.mali.product import Accumulate
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["schedule_rest", "select_for"]


def select_for(
    mod: IRModule,
    target: TargetSpec,
    recorded: PlanSource | None = None,
    accumulate: Accumulate = "float32",
) -> Selection:
    """Choose the kernels of a module for a target; `accumulate` is the type of a GPU's sums."""
    if target.gpu is not None:
        return select_gpu_kernels(mod, target.gpu, recorded, accumulate)
    return select_kernels(mod, target.cpu, recorded)


def schedule_rest(mod: IRModule, own: set[str], target: TargetSpec) -> IRModule:
    """Schedule every TIR function whose name is not in `own`.

    Raises:
        CompileError: the target's GPU cannot run one of them.
    """
    if target.gpu is None:
        return schedule_fallback(mod, own, target.cpu)
    mod = schedule_gpu_fallback(mod, own, target.gpu)
    check_parameters(mod, target.gpu)
    return mod
