"""Products behind a squeeze-and-excite gate: rows of a task, their spread, tile, loops, threads."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.gated import GatedPlan
from tvm_mobilenet.schedule.gated import plan_gated as _plan_gated
from tvm_mobilenet.tuning.spaces import matmul
from tvm_mobilenet.tuning.spaces.common import (
    Dimension,
    at,
    frozen_fault,
    kind_fault,
    range_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import GatedWorkload, MatmulWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["SCRATCH_BYTES", "SPREADS", "dimensions", "fault", "normal", "start"]

SCRATCH_BYTES = 8 << 20
"""More than any core's cache by far: such a block is no block."""
SPREADS = (0, 1, 2, 4)
"""Vectors by which scratch rows may be spread apart."""
_FREE = frozenset({"row_block", "is_parallel", "scratch_stride", "pointwise"})

start = functools.lru_cache(maxsize=256)(_plan_gated)


def dimensions(
    w: GatedWorkload, plan: GatedPlan, cpu: Cpu, *, is_split_free: bool
) -> list[Dimension]:
    """Return what may be changed: rows of a task, their spread, threads, and the product's."""
    lanes, image_rows = plan.pointwise.lanes, w.pointwise.rows // w.batch
    blocks = sorted({math.ceil(image_rows / parts) for parts in range(1, image_rows + 1)})
    tiles, steps, outer, _, *prefetch = matmul.dimensions(
        _block(w, plan.row_block), plan.pointwise, cpu, is_split_free=False
    )
    return [
        ((), [{"row_block": rows} for rows in blocks]),
        ((), [{"scratch_stride": w.pointwise.depth + n * lanes} for n in SPREADS]),
        ((), split(cpu, is_split_free)),
        *at(("pointwise",), [tiles, steps, outer, *prefetch]),
    ]


def normal(w: GatedWorkload, plan: GatedPlan, cpu: Cpu) -> GatedPlan:
    """A task has no threads of its own."""
    pointwise = replace(plan.pointwise, is_parallel=start(w, cpu).pointwise.is_parallel)
    return replace(plan, pointwise=matmul.normal(_block(w, plan.row_block), pointwise))


def fault(w: GatedWorkload, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = (
        kind_fault(plan, GatedPlan)
        or frozen_fault(plan, start(w, cpu), _FREE)
        or range_fault("row_block", plan.row_block, w.pointwise.rows // w.batch)
    )
    if wrong is not None:
        return wrong
    depth = w.pointwise.depth
    most = depth + max(SPREADS) * plan.pointwise.lanes
    if not depth <= plan.scratch_stride <= most:
        return f"scratch_stride {plan.scratch_stride} is not in {depth} to {most}"
    if plan.row_block * plan.scratch_stride * 4 > SCRATCH_BYTES:
        return f"row_block {plan.row_block} needs more than {SCRATCH_BYTES >> 20} MiB of scratch"
    row_bytes = plan.scratch_stride * 4
    return matmul.fault(_block(w, plan.row_block), plan.pointwise, cpu, row_bytes=row_bytes)


def _block(w: GatedWorkload, rows: int) -> MatmulWorkload:
    return replace(w.pointwise, rows=rows)
