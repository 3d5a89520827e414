"""Integer depthwise convolutions: the register tile, rows and planes of a task, the copy, threads.

What a tile needs of the register file cannot be told beforehand: LLVM keeps pixels and weights in
registers, or loads them again, as it sees fit. The totals alone must fit; a tile that spills is
rejected once it is built. With VNNI the channels of a plane are a choice as well.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.integer.depthwise import IntegerDepthwisePlan
from tvm_mobilenet.schedule.integer.depthwise import plan_integer_depthwise as _plan
from tvm_mobilenet.schedule.integer.depthwise_dots import QUAD
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    register_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "idle_share", "normal", "start"]

_FREE = frozenset(
    {"row_tile", "column_tile", "row_block", "plane_block", "copied_pixels", "is_parallel"}
)
_MOST_ROWS = 4
_MOST_COLUMNS = 14
_COPIED = (1, 2, 4, 8, 16)
_LEAST_LANES = 16

start = functools.lru_cache(maxsize=1024)(_plan)


def dimensions(
    w: IntegerConvWorkload, plan: IntegerDepthwisePlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: tile, rows of a task, planes of a task, the copy, threads."""
    planes = math.ceil(w.in_channels / plan.lanes)
    tiles: list[Change] = [
        {"row_tile": rows, "column_tile": columns}
        for rows in range(1, min(w.out_height, _MOST_ROWS) + 1)
        for columns in range(1, min(w.out_width, _MOST_COLUMNS) + 1)
        if _registers(plan, rows, columns) <= cpu.vector_registers
    ]
    return [
        tiles,
        [{"lanes": lanes, "plane_block": 1} for lanes in _plane_lanes(plan, cpu)],
        [{"row_block": rows} for rows in range(1, w.out_height + 1)],
        [{"plane_block": block} for block in range(1, planes + 1) if planes % block == 0],
        [{"copied_pixels": pixels} for pixels in _COPIED],
        split(cpu, is_split_free),
    ]


def _plane_lanes(plan: IntegerDepthwisePlan, cpu: Cpu) -> list[int]:
    """Return how many channels a plane may have: of `dots` four whole vectors, or less."""
    if plan.kind != "dots":
        return []
    widest = QUAD * cpu.lanes("int32")
    return [lanes for lanes in (widest, widest // 2, widest // 4) if lanes >= _LEAST_LANES]


def _registers(plan: IntegerDepthwisePlan, rows: int, columns: int) -> int:
    """Return the registers that totals take; `widening` finishes one pixel before the next."""
    if plan.kind == "widening":
        return 4 + rows * columns
    # Of `dots`, beside the totals: a quad as it is read, interleaved, and a filter.
    return QUAD * rows * columns + QUAD + 1 if plan.kind == "dots" else rows * columns + 2


def idle_share(w: IntegerConvWorkload, plan: IntegerDepthwisePlan, cores: int) -> float:
    """Return what the busiest core computes beyond its share, rows that are computed twice too."""
    planes = math.ceil(w.in_channels / plan.lanes)
    blocks = math.ceil(w.out_height / plan.row_block) * math.ceil(planes / plan.plane_block)
    turns = math.ceil(w.batch * blocks / cores)
    share = w.batch * w.out_height * planes / cores
    return turns * plan.row_block * plan.plane_block / share - 1


def normal(w: IntegerConvWorkload, plan: IntegerDepthwisePlan) -> IntegerDepthwisePlan:
    """Have a task be no lower than its tiles, and copy no more pixels at once than there are."""
    return replace(
        plan,
        row_block=max(plan.row_block, plan.row_tile),
        copied_pixels=min(plan.copied_pixels, w.width),
    )


def fault(w: IntegerConvWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = kind_fault(plan, IntegerDepthwisePlan)
    if wrong is not None:
        return wrong
    lanes = _plane_lanes(plan, cpu)
    if lanes and plan.lanes not in lanes:
        return f"lanes {plan.lanes} is none of {lanes}"
    wrong = (
        frozen_fault(plan, start(w, cpu), _FREE | {"lanes"} if lanes else _FREE)
        or range_fault("row_block", plan.row_block, w.out_height)
        or range_fault("row_tile", plan.row_tile, min(_MOST_ROWS, plan.row_block))
        or range_fault("column_tile", plan.column_tile, min(_MOST_COLUMNS, w.out_width))
        or range_fault("copied_pixels", plan.copied_pixels, _COPIED[-1])
    )
    if wrong is not None:
        return wrong
    planes = math.ceil(w.in_channels / plan.lanes)
    if plan.plane_block < 1 or planes % plan.plane_block:
        return f"plane_block {plan.plane_block} does not divide {planes} planes"
    return register_fault(_registers(plan, plan.row_tile, plan.column_tile), cpu)
