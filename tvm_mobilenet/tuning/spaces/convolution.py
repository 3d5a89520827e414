"""Dense convolutions, the stem among them: the register tile and the threads."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.convolution import ConvPlan
from tvm_mobilenet.schedule.convolution import plan_conv as _plan_conv
from tvm_mobilenet.schedule.convolution_lanes import lane_tile_fault
from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.schedule.register_tile import register_tiles
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

__all__ = ["dimensions", "fault", "normal", "start"]

_FREE = frozenset({"column_tile", "channel_vectors", "is_parallel"})
_MOST_COLUMNS = 24
_MOST_VECTORS = 8

start = functools.lru_cache(maxsize=256)(_plan_conv)


def dimensions(
    w: ConvWorkload, plan: ConvPlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: tile, threads."""
    if plan.by_lane:
        pairs = [
            (columns, vectors)
            for vectors in range(1, _MOST_VECTORS + 1)
            for columns in range(1, min(w.out_width, _MOST_COLUMNS) + 1)
            if lane_tile_fault(w, cpu, columns, vectors) is None
        ]
    else:
        pairs = [(tile.rows, tile.vectors) for tile in register_tiles(cpu)]
    tiles = [{"column_tile": c, "channel_vectors": v} for c, v in pairs if c <= w.out_width]
    return [tiles, split(cpu, is_split_free)]


def normal(w: ConvWorkload, plan: ConvPlan) -> ConvPlan:
    """Cut the vectors that exceed the channels."""
    pieces = len(split_lanes(w.out_channels, plan.lanes))
    return replace(plan, channel_vectors=min(plan.channel_vectors, pieces))


def fault(w: ConvWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = kind_fault(plan, ConvPlan) or frozen_fault(plan, start(w, cpu), _FREE)
    if wrong is not None:
        return wrong
    pieces = len(split_lanes(w.out_channels, plan.lanes))
    if plan.by_lane:
        return lane_tile_fault(w, cpu, plan.column_tile, min(plan.channel_vectors, pieces))
    wrong = range_fault("column_tile", plan.column_tile, w.out_width)
    if wrong is not None:
        return wrong
    if plan.channel_vectors < 1:
        return f"channel_vectors {plan.channel_vectors} is below 1"
    return register_fault(plan.channel_vectors * (plan.column_tile + 1) + 1, cpu)
