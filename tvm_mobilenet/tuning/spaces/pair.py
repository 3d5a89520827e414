"""A depthwise convolution and the pointwise one after it: fused or apart is part of the search.

Fused: rows of a task, how far its rows lie apart, both register tiles, the loop order inside a
task, the threads. Apart: all that either can change.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.depthwise_tiles import tile_fault
from tvm_mobilenet.schedule.separable import (
    ApartPlan,
    SeparablePlan,
    group_columns,
    packs_pair,
    plan_packed_pair,
    plan_task_depthwise,
)
from tvm_mobilenet.schedule.separable import plan_separable as _plan_separable
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.tuning.spaces import depthwise, matmul
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    Dimension,
    at,
    frozen_fault,
    kind_fault,
    range_fault,
    split,
)
from tvm_mobilenet.tuning.spaces.gated import SCRATCH_BYTES, SPREADS

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import MatmulWorkload, SeparableWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "normal", "seeds", "start"]

_FREE = frozenset({"row_block", "is_parallel", "scratch_stride", "depthwise", "pointwise"})
_PARTS = (2, 4, 8)

plan_separable = functools.lru_cache(maxsize=256)(_plan_separable)


def start(w: SeparableWorkload, cpu: Cpu) -> SeparablePlan | ApartPlan:
    """Return the computed plan; for a pair that is not worth fusing, two."""
    return plan_separable(w, cpu) or _apart(w, cpu)


def seeds(w: SeparableWorkload, cpu: Cpu) -> list[SeparablePlan | ApartPlan]:
    """Return the start and the other choices that are as good a guess as any."""
    first = start(w, cpu)
    found: list[SeparablePlan | ApartPlan] = [first]
    if not isinstance(first, ApartPlan):
        found.append(_apart(w, cpu))
    rows = w.depthwise.out_height
    blocks = sorted({math.ceil(rows / parts) for parts in _PARTS})
    return [*found, *(_fused(w, cpu, block) for block in blocks)]


def dimensions(
    w: SeparableWorkload, plan: SeparablePlan | ApartPlan, cpu: Cpu, *, is_split_free: bool
) -> list[Dimension]:
    """Return what may be changed."""
    if isinstance(plan, ApartPlan):
        first = depthwise.dimensions(w.depthwise, plan.depthwise, cpu, is_split_free=is_split_free)
        second = matmul.dimensions(w.pointwise, plan.pointwise, cpu, is_split_free=is_split_free)
        return [*at(("depthwise",), first), *at(("pointwise",), second)]
    product = matmul.dimensions(_block(w, plan.row_block), plan.pointwise, cpu, is_split_free=False)
    tiles, steps, outer, _, *writer = product
    common: list[Dimension] = [
        ((), split(cpu, is_split_free)),
        *at(("pointwise",), [tiles, steps]),
    ]
    heights = range(1, w.depthwise.out_height + 1)
    if plan.pointwise.packs_rows:
        # Other rows, other tiles: each block begins with what is computed for it.
        blocks = [_fused(w, cpu, rows) for rows in heights]
        columns = group_columns(w.depthwise)
        tile = depthwise.tiles(w.depthwise, plan.depthwise, cpu, column_multiple=columns)
        return [
            *common,
            (
                (),
                [
                    {
                        "row_block": other.row_block,
                        "depthwise": other.depthwise,
                        "pointwise": other.pointwise,
                    }
                    for other in blocks
                ],
            ),
            *at(("pointwise",), writer),
            (("depthwise",), tile),
        ]
    lanes, channels = plan.pointwise.lanes, w.depthwise.out_channels
    row_blocks: list[Change] = [{"row_block": rows} for rows in heights]
    if plan.depthwise.row_tile:
        # A tile has no more rows than its task.
        for change in row_blocks:
            change["depthwise"] = plan_task_depthwise(w.depthwise, cpu, change["row_block"])
    return [
        *common,
        ((), row_blocks),
        ((), [{"scratch_stride": channels + n * lanes} for n in SPREADS]),
        (("pointwise",), outer),
        *at(("pointwise",), writer),
        (("depthwise",), depthwise.tiles(w.depthwise, plan.depthwise, cpu)),
    ]


def normal(
    w: SeparableWorkload, plan: SeparablePlan | ApartPlan, cpu: Cpu
) -> SeparablePlan | ApartPlan:
    """Return the one spelling: a task has no threads of its own, and all its rows."""
    if isinstance(plan, ApartPlan):
        return ApartPlan(
            depthwise=depthwise.normal(w.depthwise, plan.depthwise),
            pointwise=matmul.normal(w.pointwise, plan.pointwise),
        )
    model = _fused(w, cpu, plan.row_block)
    pointwise = replace(plan.pointwise, is_parallel=model.pointwise.is_parallel)
    if plan.pointwise.packs_rows:
        # Panel by panel, whatever the plan of the product says.
        pointwise = replace(pointwise, outer=model.pointwise.outer)
    first = replace(
        plan.depthwise,
        row_block=model.depthwise.row_block,
        channel_block=model.depthwise.channel_block,
        is_parallel=model.depthwise.is_parallel,
    )
    if not plan.depthwise.row_tile:
        first = depthwise.normal(w.depthwise, first)
    elif not plan.pointwise.packs_rows:
        first = replace(first, row_block=first.row_tile)
    return replace(
        plan, depthwise=first, pointwise=matmul.normal(_block(w, plan.row_block), pointwise)
    )


def fault(w: SeparableWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    if isinstance(plan, ApartPlan):
        return depthwise.fault(w.depthwise, plan.depthwise, cpu) or matmul.fault(
            w.pointwise, plan.pointwise, cpu
        )
    wrong = kind_fault(plan, SeparablePlan) or range_fault(
        "row_block", plan.row_block, w.depthwise.out_height
    )
    if wrong is not None:
        return wrong
    channels = w.depthwise.out_channels
    most = channels + max(SPREADS) * plan.pointwise.lanes
    if not channels <= plan.scratch_stride <= most:
        return f"scratch_stride {plan.scratch_stride} is not in {channels} to {most}"
    rows = plan.row_block * w.depthwise.out_width
    if rows * plan.scratch_stride * 4 > SCRATCH_BYTES:
        return f"row_block {plan.row_block} needs more than {SCRATCH_BYTES >> 20} MiB of scratch"
    model = _fused(w, cpu, plan.row_block)
    wrong = frozen_fault(plan, model, _FREE)
    if wrong is not None:
        return wrong
    if packs_pair(w, cpu):
        return _packed_fault(w, plan, model, cpu)
    if plan.depthwise.row_tile > plan.row_block:
        return f"row_tile {plan.depthwise.row_tile} exceeds a task of {plan.row_block} rows"
    row_bytes = plan.scratch_stride * 4
    return depthwise.fault(w.depthwise, plan.depthwise, cpu) or matmul.fault(
        _block(w, plan.row_block), plan.pointwise, cpu, row_bytes=row_bytes
    )


def _packed_fault(
    w: SeparableWorkload, plan: SeparablePlan, model: SeparablePlan, cpu: Cpu
) -> str | None:
    if plan.scratch_stride != model.scratch_stride:
        return f"scratch_stride is {plan.scratch_stride}, packed rows are not spread apart"
    first, columns = plan.depthwise, group_columns(w.depthwise)
    if not first.row_tile <= plan.row_block:
        return f"row_tile {first.row_tile} exceeds a task of {plan.row_block} rows"
    if first.column_tile % columns:
        return f"column_tile {first.column_tile} is no multiple of {columns}"
    return (
        frozen_fault(first, model.depthwise, frozenset({"row_tile", "column_tile"}))
        or tile_fault(w.depthwise, cpu, first.row_tile, first.column_tile)
        or matmul.packed_fault(
            _block(w, plan.row_block),
            plan.pointwise,
            model.pointwise,
            cpu,
            row_multiple=columns,
        )
    )


def _block(w: SeparableWorkload, rows: int) -> MatmulWorkload:
    return replace(w.pointwise, rows=rows * w.depthwise.out_width)


def _apart(w: SeparableWorkload, cpu: Cpu) -> ApartPlan:
    return ApartPlan(
        depthwise=depthwise.start(w.depthwise, cpu), pointwise=matmul.start(w.pointwise, cpu)
    )


@functools.lru_cache(maxsize=4096)
def _fused(w: SeparableWorkload, cpu: Cpu, row_block: int) -> SeparablePlan:
    """Return a fused plan with that many rows a task, the rest as it would be computed for it."""
    computed = plan_separable(w, cpu)
    is_parallel = pays_to_parallelize(w, cpu)
    if packs_pair(w, cpu):
        return plan_packed_pair(w, cpu, row_block, is_parallel)
    lanes = cpu.lanes(w.dtype)
    channels = w.depthwise.out_channels
    stride = channels + (lanes if channels * 4 % 256 == 0 else 0)
    pointwise = matmul.start(_block(w, row_block), cpu, row_bytes=stride * 4)
    pointwise = replace(pointwise, outer="columns")
    first = plan_task_depthwise(w.depthwise, cpu, row_block)
    if computed is not None:
        return replace(computed, row_block=row_block, depthwise=first, pointwise=pointwise)
    return SeparablePlan(
        row_block=row_block,
        is_parallel=is_parallel,
        scratch_stride=stride,
        depthwise=first,
        pointwise=pointwise,
    )
