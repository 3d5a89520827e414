"""Integer matrix products, unrolled convolutions among them: tile, sums, loops, threads.

Convolutions that read their windows in place (VNNI) have a tile and threads alone.

There are no blocks of the depth: totals would be stored and loaded between them, and a panel of
the deepest layers (1024 bytes of 16 to 96 columns) streams from the L2 cache as fast as it is used.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.integer.convolution import plan_integer_conv, unrolled
from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan, plan_integer_matmul
from tvm_mobilenet.schedule.integer.rows import CHUNK
from tvm_mobilenet.schedule.integer.tiles import tile_registers
from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload, IntegerMatmulWorkload
from tvm_mobilenet.tuning.spaces.common import (
    Change,
    frozen_fault,
    kind_fault,
    range_fault,
    register_fault,
    split,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

    Product = IntegerMatmulWorkload | IntegerConvWorkload

__all__ = ["dimensions", "fault", "idle_share", "normal", "start"]

_FREE = frozenset({"row_tile", "column_vectors", "unroll", "outer", "block", "is_parallel"})
_FREE_OF_DIRECT = frozenset({"row_tile", "column_vectors", "is_parallel"})
_MOST_ROWS = 24
_MOST_VECTORS = 8
_UNROLLED = (1, 2, 4, 8)
_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SUMS = ({"sums": 4, "chunk": 32}, {"sums": 2, "chunk": 32}, {"sums": 2, "chunk": 16})
"""How `mlal` may sum in 16 bits: four products lie eight bytes apart, in 32."""


def _product(w: Product) -> IntegerMatmulWorkload:
    return w if isinstance(w, IntegerMatmulWorkload) else unrolled(w)


@functools.lru_cache(maxsize=1024)
def start(w: Product, cpu: Cpu) -> IntegerMatmulPlan:
    """Compute the plan."""
    if isinstance(w, IntegerMatmulWorkload):
        return plan_integer_matmul(w, cpu)
    return plan_integer_conv(w, cpu)


def _is_direct(w: Product, plan: IntegerMatmulPlan) -> bool:
    return isinstance(w, IntegerConvWorkload) and plan.product == "vnni"


def _most_rows(w: Product, plan: IntegerMatmulPlan) -> int:
    """Return the most rows of a tile; those of a window read in place are pixels of one line."""
    if isinstance(w, IntegerConvWorkload) and _is_direct(w, plan):
        return min(_MOST_ROWS, w.out_width)
    return min(_MOST_ROWS, _product(w).rows)


def dimensions(
    w: Product, plan: IntegerMatmulPlan, cpu: Cpu, *, is_split_free: bool
) -> list[list[Change]]:
    """Return what may be changed: tile, sums, turns written out, loop outside, blocks, threads."""
    tiles: list[Change] = [
        {"row_tile": rows, "column_vectors": vectors}
        for vectors in range(1, _MOST_VECTORS + 1)
        for rows in range(1, _most_rows(w, plan) + 1)
        if tile_registers(plan.product, rows, vectors) <= cpu.vector_registers
    ]
    if _is_direct(w, plan):
        return [tiles, split(cpu, is_split_free)]
    deep = plan.product == "mlal" and _product(w).depth >= 2 * CHUNK
    return [
        tiles,
        [dict(sums) for sums in _SUMS] if deep else [],
        [{"unroll": turns} for turns in _UNROLLED],
        [{"outer": "rows"}, {"outer": "columns"}],
        [{"block": block} for block in _BLOCKS],
        [{"prefetch": ahead} for ahead in (True, False) if plan.product == "vnni"],
        split(cpu, is_split_free),
    ]


def idle_share(w: Product, plan: IntegerMatmulPlan, cores: int) -> float:
    """Return what the busiest core computes beyond its share, of tiles or panels that are whole."""
    if _is_direct(w, plan):
        return 0.0  # tasks are lines of the output, whatever the plan
    product, width = _product(w), plan.column_vectors * plan.lanes
    rows, columns = product.rows // plan.row_tile, product.columns // width
    items = max(1, rows if plan.outer == "rows" else columns)
    turns = math.ceil(math.ceil(items / plan.block) / cores)
    return turns * min(plan.block, items) * cores / items - 1


def normal(w: Product, plan: IntegerMatmulPlan) -> IntegerMatmulPlan:
    """Cut what exceeds the workload."""
    if _is_direct(w, plan):
        vectors = math.ceil(_product(w).columns / plan.lanes)
        return replace(
            plan,
            row_tile=min(plan.row_tile, _most_rows(w, plan)),
            column_vectors=min(plan.column_vectors, vectors),
        )
    return plan.fitted(_product(w))


def fault(w: Product, plan: Any, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used."""
    wrong = kind_fault(plan, IntegerMatmulPlan)
    if wrong is not None:
        return wrong
    product, computed = _product(w), start(w, cpu)
    deep = computed.product == "mlal" and product.depth >= 2 * CHUNK
    free = _FREE | {"sums", "chunk"} if deep else _FREE
    if computed.product == "vnni":
        free = _FREE_OF_DIRECT if _is_direct(w, computed) else _FREE | {"prefetch"}
    wrong = (
        frozen_fault(plan, computed, free)
        or range_fault("row_tile", plan.row_tile, _most_rows(w, computed))
        or range_fault("column_vectors", plan.column_vectors, _MOST_VECTORS)
        or range_fault("unroll", plan.unroll, _UNROLLED[-1])
        or range_fault("block", plan.block, _BLOCKS[-1])
    )
    if wrong is not None:
        return wrong
    if deep and {"sums": plan.sums, "chunk": plan.chunk} not in _SUMS:
        return f"sums of {plan.sums} in chunks of {plan.chunk} bytes are not written"
    return register_fault(tile_registers(plan.product, plan.row_tile, plan.column_vectors), cpu)
