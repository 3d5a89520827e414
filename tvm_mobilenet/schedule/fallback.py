"""A plain schedule for kernels that no family serves: inlined, parallel, vectorised.

It is meant to be right everywhere and reasonable, not fast: pooling windows, grouped convolutions,
resizes, softmax and whatever else a user's model holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm_mobilenet._tvm import IRModule, IterVar, PrimFunc, Schedule, ScheduleError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["inlined", "schedule_fallback", "schedule_others"]

logger = logging.getLogger(__name__)


def schedule_fallback(mod: IRModule, own: set[str], cpu: Cpu) -> IRModule:
    """Schedule every TIR function of `mod` whose name is not in `own`."""
    return schedule_others(mod, own, lambda _name, function: _scheduled(function, cpu))


def schedule_others(
    mod: IRModule, own: set[str], scheduled: Callable[[str, PrimFunc], PrimFunc]
) -> IRModule:
    """Replace every TIR function of `mod` whose name is not in `own`; it keeps its attributes."""
    result = IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    for global_var, function in mod.functions_items():
        if not isinstance(function, PrimFunc) or global_var.name_hint in own:
            continue
        new = scheduled(global_var.name_hint, function)
        for key, value in dict(function.attrs or {}).items():
            new = new.with_attr(str(key), value)
        result.update_func(global_var, new)
    return result


def inlined(function: PrimFunc) -> tuple[Any, list[Any]]:
    """Return a schedule of the function, `main`, and the blocks that could not be inlined."""
    schedule = Schedule(IRModule({"main": function.without_attr("global_symbol")}))
    root = schedule.get_sblock("root", func_name="main")
    for block in schedule.get_child_blocks(root):
        try:
            schedule.compute_inline(block)
        except ScheduleError:
            logger.debug("not inlined: a reduction, or the output")
    return schedule, list(schedule.get_child_blocks(root))


def _scheduled(function: PrimFunc, cpu: Cpu) -> PrimFunc:
    schedule, blocks = inlined(function)
    for block in blocks:
        try:
            _spread(schedule, block, cpu)
        except ScheduleError as err:
            logger.debug("left as it is: %s", err)
    return schedule.mod["main"]


def _spread(schedule: Any, block: Any, cpu: Cpu) -> None:
    """Cut the outer loops among the threads and the innermost one into vectors."""
    loops = schedule.get_loops(block)
    kinds = [var.iter_type for var in schedule.get(block).iter_vars]
    if not loops or len(kinds) != len(loops):
        return
    lead = 0
    while lead < len(kinds) and kinds[lead] == IterVar.DataPar:
        lead += 1
    if lead == 0:
        return
    extents = [int(schedule.get(loop).extent) for loop in loops]
    lanes = cpu.lanes("float32")
    outer = loops[:lead]
    if lead == len(loops):
        # Element-wise: the last loop becomes vectors, if it is long enough.
        if extents[-1] % lanes == 0 and lead > 1:
            _, inner = schedule.split(loops[-1], [None, lanes])
            schedule.vectorize(inner)
        outer = loops[: max(1, lead - 1)]
    schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
