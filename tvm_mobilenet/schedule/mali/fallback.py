"""A plain GPU schedule for what no kernel family computes: a work-item for each output element.

It is meant to be right everywhere and reasonable, not fast: pooling windows, grouped convolutions,
resizes, softmax and whatever else a user's model holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_mobilenet._tvm import IRModule, IterVar, PrimFunc, ScheduleError
from tvm_mobilenet.errors import CompileError
from tvm_mobilenet.schedule.fallback import inlined, schedule_others

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = ["check_parameters", "schedule_gpu_fallback"]

_GROUP = 64
"""Work-items of a group: every Mali runs as many at any number of registers."""


def schedule_gpu_fallback(mod: IRModule, own: set[str], gpu: Gpu) -> IRModule:
    """Schedule every TIR function of `mod` whose name is not in `own`.

    Raises:
        CompileError: a function cannot be spread over work-items.
    """

    def scheduled(name: str, function: PrimFunc) -> PrimFunc:
        try:
            return _scheduled(function, min(_GROUP, gpu.max_work_group))
        except ScheduleError as err:
            reason = str(err).strip().splitlines()[0]
            raise CompileError(f"kernel {name}: no GPU schedule: {reason}") from err

    return schedule_others(mod, own, scheduled)


def check_parameters(mod: IRModule, on_cpu: set[str], gpu: Gpu) -> None:
    """Check that OpenCL C can take the arguments of every kernel that is not `on_cpu`.

    Raises:
        CompileError: names the kernel, the argument and what its type is.
    """
    for global_var, function in mod.functions_items():
        if not isinstance(function, PrimFunc) or global_var.name_hint in on_cpu:
            continue
        for argument in function.params:
            dtype = str(argument.ty.dtype)
            where = f"kernel {global_var.name_hint}: argument {argument.name!r} is {dtype}"
            if dtype == "bool":
                raise CompileError(
                    f"{where}, which no OpenCL kernel can take; keep the comparison and what uses "
                    "it in one operator, or cast it to uint8 in the model"
                )
            if dtype == "float16" and not gpu.has_fp16:
                raise CompileError(
                    f"{where}, which {gpu.model} does not compute; compile with --dtype float32"
                )


def _scheduled(function: PrimFunc, group: int) -> PrimFunc:
    schedule, blocks = inlined(function)
    for block in blocks:
        _spread(schedule, block, group)
    return schedule.mod["main"]


def _spread(schedule: Any, block: Any, group: int) -> None:
    """Give each output element of a block a work-item, which reduces for itself."""
    loops = schedule.get_loops(block)
    kinds = [var.iter_type for var in schedule.get(block).iter_vars]
    if len(kinds) != len(loops):
        kinds = [IterVar.DataPar] * len(loops)  # a block without variables reduces nothing
    if not loops:
        unit = schedule.add_unit_loop(block)
        schedule.bind(unit, "threadIdx.x")
        return
    parallel = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == IterVar.DataPar]
    reduced = [loop for loop in loops if loop not in parallel]
    if not parallel:
        parallel = [schedule.add_unit_loop(loops[0])]
    elif reduced:
        schedule.reorder(*parallel, *reduced)
    fused = schedule.fuse(*parallel) if len(parallel) > 1 else parallel[0]
    outer, inner = schedule.split(fused, [None, group])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")
    if reduced:
        schedule.decompose_reduction(block, reduced[0])
