"""Kernels for a target, whatever it computes on: its CPU, its GPU, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.schedule.fallback import schedule_fallback
from tvm_mobilenet.schedule.mali.fallback import check_parameters, schedule_gpu_fallback
from tvm_mobilenet.schedule.mali.select import select_gpu_kernels
from tvm_mobilenet.schedule.mixed import CPU_PREFIX, named_fallbacks, place_on_devices
from tvm_mobilenet.schedule.select import (
    PlanSource,
    Selection,
    select_beside_gpu,
    select_kernels,
)

if TYPE_CHECKING:
    from tvm_mobilenet.precision import Accumulate
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["schedule_rest", "select_for"]


def select_for(
    mod: IRModule,
    target: TargetSpec,
    recorded: PlanSource | None = None,
    accumulate: Accumulate = "float32",
) -> Selection:
    """Choose the kernels of a module for a target; `accumulate` is the type of float16's sums."""
    if target.gpu is not None:
        beside = select_beside_gpu(mod, target.cpu, target.gpu.on_cpu)
        found = select_gpu_kernels(beside.mod, target.gpu, recorded, accumulate)
        return Selection(found.mod, beside.kernels | found.kernels)
    return select_kernels(mod, target.cpu, recorded, accumulate)


def schedule_rest(mod: IRModule, own: set[str], target: TargetSpec) -> IRModule:
    """Schedule every TIR function whose name is not in `own`, and place all of them.

    Raises:
        CompileError: the target's GPU cannot run one of them.
    """
    if target.gpu is None:
        return schedule_fallback(mod, own, target.cpu)
    on_cpu = named_fallbacks(mod, own, target.gpu.on_cpu)
    others = {global_var.name_hint for global_var in mod.get_global_vars()} - on_cpu
    mod = schedule_fallback(mod, others, target.cpu)
    mod = schedule_gpu_fallback(mod, own | on_cpu, target.gpu)
    on_cpu |= {symbol for symbol in own if symbol.startswith(CPU_PREFIX)}
    check_parameters(mod, on_cpu, target.gpu)
    return place_on_devices(mod, on_cpu, target)
