"""Depthwise convolutions: the register tile, rows and channels of a task, the threads."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.depthwise import DepthwisePlan
from tvm_mobilenet.schedule.depthwise import plan_depthwise as _plan_depthwise
from tvm_mobilenet.schedule.depthwise_tiles import tile_fault
from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    register_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import ConvWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "normal", "start", "tiles"]

_FREE = frozenset({"column_tile", "channel_vectors", "row_block", "channel_block", "is_parallel"})
_FREE_OF_ROWS = frozenset({"column_tile", "row_tile", "row_block", "channel_block", "is_parallel"})
_MOST_COLUMNS = 16
_MOST_VECTORS = 8
_MOST_ROWS = 6

start = functools.lru_cache(maxsize=1024)(_plan_depthwise)


def dimensions(
    w: ConvWorkload, plan: DepthwisePlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: tile, rows of a task, channels of a task, threads."""
    vectors = plan.channel_vectors
    full = w.in_channels // (plan.lanes * vectors)
    blocks = [0, *(n for n in range(1, full) if full % n == 0)]
    rows = [] if plan.row_tile else [{"row_block": n} for n in range(1, w.out_height + 1)]
    return [
        tiles(w, plan, cpu),
        rows,
        [{"channel_block": block} for block in blocks],
        split(cpu, is_split_free),
    ]


def tiles(
    w: ConvWorkload, plan: DepthwisePlan, cpu: Cpu, *, column_multiple: int = 1
) -> list[Change]:
    """Return the register tiles; columns in multiples where whole groups are stored."""
    most = min(w.out_width, _MOST_COLUMNS)
    if plan.row_tile:
        return [
            {"row_tile": rows, "column_tile": columns}
            for rows in range(1, min(w.out_height, _MOST_ROWS) + 1)
            for columns in range(column_multiple, most + 1, column_multiple)
            if tile_fault(w, cpu, rows, columns) is None
        ]
    pieces = len(split_lanes(w.in_channels, plan.lanes))
    return [
        {"column_tile": columns, "channel_vectors": vectors}
        for vectors in range(1, min(pieces, _MOST_VECTORS) + 1)
        for columns in range(1, most + 1)
    ]


def normal(w: ConvWorkload, plan: DepthwisePlan) -> DepthwisePlan:
    """Cut what exceeds the workload; blocks that do not divide the panels are written as one."""
    if plan.row_tile:
        full = w.in_channels // plan.lanes
        block = 0 if plan.channel_block >= full else plan.channel_block
        return replace(plan, row_block=plan.row_tile, channel_block=block)
    pieces = len(split_lanes(w.in_channels, plan.lanes))
    vectors = min(plan.channel_vectors, pieces)
    full = w.in_channels // (plan.lanes * vectors)
    block = plan.channel_block
    if block >= full or (block and full % block):
        block = 0
    return replace(plan, channel_vectors=vectors, channel_block=block)


def fault(w: ConvWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = kind_fault(plan, DepthwisePlan)
    if wrong is not None:
        return wrong
    computed = start(w, cpu)
    if plan.row_tile and computed.row_tile:
        vectors = w.in_channels // plan.lanes
        wrong = frozen_fault(plan, computed, _FREE_OF_ROWS) or tile_fault(
            w, cpu, plan.row_tile, plan.column_tile
        )
        if wrong is not None:
            return wrong
        if plan.row_block != plan.row_tile:
            return f"row_block {plan.row_block} is not the tile's {plan.row_tile} rows"
        if plan.channel_block < 0 or (plan.channel_block and vectors % plan.channel_block):
            return f"channel_block {plan.channel_block} does not divide {vectors} vectors"
        return None
    wrong = (
        frozen_fault(plan, computed, _FREE)
        or range_fault("column_tile", plan.column_tile, w.out_width)
        or range_fault("row_block", plan.row_block, w.out_height)
    )
    if wrong is not None:
        return wrong
    if plan.channel_vectors < 1 or plan.channel_block < 0:
        return "channel_vectors or channel_block is below its least"
    return register_fault(plan.column_tile * plan.channel_vectors + 2, cpu)
