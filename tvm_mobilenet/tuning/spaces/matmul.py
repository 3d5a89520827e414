"""Matrix products: the register tile, the loop outside, the steps written out, the threads.

Of packed rows, whether their tiles are assembly or LLVM's is a choice as well.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.schedule.matmul import MatmulPlan, packed_depth_step
from tvm_mobilenet.schedule.matmul import plan_matmul as _plan_matmul
from tvm_mobilenet.schedule.neon_tile import LANES, NeonTile
from tvm_mobilenet.schedule.packed_rows import GROUP
from tvm_mobilenet.schedule.register_tile import can_assemble, packed_tiles, register_tiles
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    register_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import MatmulWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["dimensions", "fault", "normal", "packed_fault", "start"]

_FREE = frozenset({"row_tile", "column_vectors", "outer", "is_parallel"})
_UNROLLED = (1, 2, 4, 8)
"""Steps of the depth to write out where an element is broadcast."""
_ASSEMBLED = (4, 8, 16, 24, 32, 64)
_PACKED = (4, 8, 12, 16)
"""The same for LLVM's tiles of packed rows; more, and its loads of pairs are out of reach."""

# A plan is checked against the computed one, and thousands are checked for one workload.
start = functools.lru_cache(maxsize=4096)(_plan_matmul)


def dimensions(
    w: MatmulWorkload, plan: MatmulPlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: tile, steps, loop outside, threads, and then the writer."""
    steps: tuple[int, ...]
    if plan.packs_rows:
        candidates = packed_tiles(cpu, in_assembly=plan.in_assembly)
        steps = _ASSEMBLED if plan.in_assembly else _PACKED
    else:
        candidates = register_tiles(cpu)
        steps = () if plan.by_lane else _UNROLLED
    found: list[list[Change]] = [
        [{"row_tile": tile.rows, "column_vectors": tile.vectors} for tile in candidates],
        [{"depth_step": step} for step in steps],
        [{"outer": "rows"}, {"outer": "columns"}],
        split(cpu, is_split_free),
    ]
    if not plan.by_lane:
        found.append([{"prefetches": True}, {"prefetches": False}])
    if plan.packs_rows and can_assemble(cpu):
        found.append(
            [
                {
                    "in_assembly": in_assembly,
                    "depth_step": packed_depth_step(w, in_assembly=in_assembly),
                }
                for in_assembly in (True, False)
            ]
        )
    return found


def normal(w: MatmulWorkload, plan: MatmulPlan) -> MatmulPlan:
    """Cut what exceeds the workload."""
    pieces = len(split_lanes(w.columns, plan.lanes))
    plan = replace(plan, column_vectors=min(plan.column_vectors, pieces))
    if plan.in_assembly:
        plan = replace(plan, depth_step=min(plan.depth_step, w.depth))
    return plan


def fault(w: MatmulWorkload, plan: Any, cpu: Cpu, *, row_bytes: int | None = None) -> str | None:
    """Return why a plan cannot be used; `row_bytes` as `plan_matmul` takes it."""
    wrong = kind_fault(plan, MatmulPlan)
    if wrong is not None:
        return wrong
    computed = start(w, cpu, row_bytes=row_bytes)
    if plan.packs_rows and computed.packs_rows:
        return packed_fault(w, plan, computed, cpu)
    free = _FREE if plan.by_lane else _FREE | {"depth_step", "prefetches"}
    wrong = frozen_fault(plan, computed, free) or range_fault("row_tile", plan.row_tile, w.rows)
    if wrong is not None:
        return wrong
    if plan.column_vectors < 1:
        return f"column_vectors {plan.column_vectors} is below 1"
    if not plan.by_lane and plan.depth_step not in _UNROLLED:
        return f"depth_step {plan.depth_step} is none of {_UNROLLED}"
    operands = plan.row_tile + 2 if plan.by_lane else plan.column_vectors + 1
    return register_fault(plan.row_tile * plan.column_vectors + operands, cpu)


def packed_fault(
    w: MatmulWorkload, plan: MatmulPlan, computed: MatmulPlan, cpu: Cpu, *, row_multiple: int = 1
) -> str | None:
    """Return why a plan for packed rows cannot be used.

    Where rows are packed as they are computed, in whole groups, a tile's are a `row_multiple`.
    """
    wrong = frozen_fault(plan, computed, _FREE | {"depth_step", "in_assembly"})
    if wrong is not None:
        return wrong
    if plan.in_assembly and not can_assemble(cpu):
        return "in_assembly is True, for this processor there is no assembly"
    most = math.ceil(w.rows / GROUP) * GROUP
    wrong = range_fault("row_tile", plan.row_tile, most)
    if wrong is not None or plan.row_tile % row_multiple:
        return wrong or f"row_tile {plan.row_tile} is no multiple of {row_multiple}"
    if plan.column_vectors < 1:
        return f"column_vectors {plan.column_vectors} is below 1"
    for panel in plan.panels(w.columns):
        vectors = len(panel.vectors)
        if plan.in_assembly and all(lanes == LANES for _, lanes in panel.vectors):
            if not NeonTile(plan.row_tile, vectors).is_possible:
                return f"a tile of {plan.row_tile} x {vectors} leaves no registers for its operands"
            continue
        operands = 2 * math.ceil(plan.row_tile / GROUP) + vectors
        wrong = register_fault(plan.row_tile * vectors + operands + 1, cpu)
        if wrong is not None:
            return wrong
    if plan.in_assembly:
        is_step = plan.depth_step % GROUP == 0 and GROUP <= plan.depth_step <= _ASSEMBLED[-1]
    else:
        is_step = plan.depth_step in _PACKED
    # What LLVM writes has no code for a rest, in a panel of odd columns neither.
    has_rest = any(lanes != LANES for p in plan.panels(w.columns) for _, lanes in p.vectors)
    if (not plan.in_assembly or has_rest) and is_step:
        is_step = w.depth % plan.depth_step == 0
    return None if is_step else f"depth_step {plan.depth_step} does not divide {w.depth} steps"
