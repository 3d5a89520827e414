"""Convolutions as one cascade: each stage's register tile, rows of a task, the threads."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.cascade import CascadePlan
from tvm_mobilenet.schedule.cascade import plan_cascade as _plan_cascade
from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.schedule.register_tile import RegisterTile, register_tiles
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    register_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import CascadeWorkload, ConvWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "normal", "start"]

_FREE = frozenset({"row_block", "is_parallel", "tiles"})
_MOST_COLUMNS = 16
_MOST_VECTORS = 4

start = functools.lru_cache(maxsize=256)(_plan_cascade)


def dimensions(
    w: CascadeWorkload, plan: CascadePlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: a dimension for each stage's tile, rows of a task, threads."""
    found: list[list[Change]] = []
    for index, stage in enumerate(w.stages):
        before, after = plan.tiles[:index], plan.tiles[index + 1 :]
        found.append([{"tiles": (*before, tile, *after)} for tile in _tiles(stage, cpu)])
    rows = w.stages[-1].out_height
    found.append([{"row_block": n} for n in range(1, rows + 1) if -(-rows // n) >= cpu.cores])
    return [*found, split(cpu, is_split_free)]


def _tiles(stage: ConvWorkload, cpu: Cpu) -> list[RegisterTile]:
    if not stage.is_depthwise:
        return [tile for tile in register_tiles(cpu) if tile.rows <= stage.out_width]
    return [
        RegisterTile(columns, vectors)
        for vectors in range(1, _MOST_VECTORS + 1)
        for columns in range(1, min(stage.out_width, _MOST_COLUMNS) + 1)
    ]


def normal(w: CascadeWorkload, plan: CascadePlan) -> CascadePlan:
    """Cut the vectors that exceed a stage's channels."""
    pieces = [len(split_lanes(stage.out_channels, plan.lanes)) for stage in w.stages]
    tiles = tuple(
        replace(tile, vectors=min(tile.vectors, most))
        for tile, most in zip(plan.tiles, pieces, strict=False)
    )
    return replace(plan, tiles=tiles)


def fault(w: CascadeWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = (
        kind_fault(plan, CascadePlan)
        or frozen_fault(plan, start(w, cpu), _FREE)
        or range_fault("row_block", plan.row_block, w.stages[-1].out_height)
    )
    if wrong is not None:
        return wrong
    if len(plan.tiles) != len(w.stages):
        return f"{len(plan.tiles)} tiles for {len(w.stages)} stages"
    for stage, tile in zip(w.stages, plan.tiles, strict=True):
        wrong = range_fault("a tile's rows", tile.rows, stage.out_width)
        if wrong is not None or tile.vectors < 1:
            return wrong or f"a tile's vectors, {tile.vectors}, are below 1"
        operands = 2 if stage.is_depthwise else tile.vectors + 1
        wrong = register_fault(tile.rows * tile.vectors + operands, cpu)
        if wrong is not None:
            return wrong
    return None
