"""A pointwise convolution after squeeze-and-excite, whose gate scales the rows on their way in.

A task scales some rows into scratch memory that stays in its core's cache and multiplies them at
once, so that the scaled tensor is never written. Scaling there costs one multiplication for each
element of the rows, where scaling inside the register tile would cost one for each row, step and
panel. The scratch rows are padded apart as in `separable`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Parameter,
    overlapping_start,
    split_lanes,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.matmul import MatmulPlan, MatmulWriter, plan_matmul
from tvm_mobilenet.schedule.register_tile import tile_cycles
from tvm_mobilenet.schedule.threads import CACHE_BYTES_PER_CYCLE, pays_to_parallelize
from tvm_mobilenet.schedule.workload import GatedWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["GatedPlan", "plan_gated", "write_gated"]


_LONE_VECTOR_COST = 2
"""A broadcast for each multiply-add: a tile of 14 x 1 ran at 41 GFLOP/s where 5 x 2 ran at 95
(196 rows, depth 480, 112 columns on one core of Zen 3)."""


@dataclass(frozen=True, kw_only=True)
class GatedPlan:
    """How the scaled product is computed; `tuning/spaces/` says what a search may change."""

    row_block: int
    """Rows of one task; tasks are cut among the threads."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    scratch_stride: int
    """Elements from one row to the next in scratch memory."""
    pointwise: MatmulPlan
    """Its `outer` loop is the outer one inside a task."""


def plan_gated(workload: GatedWorkload, cpu: Cpu) -> GatedPlan:
    """Compute the plan: as few tasks as keep every core busy and their rows in the cache."""
    product = workload.pointwise
    lanes = cpu.lanes(workload.dtype)
    stride = product.depth + (lanes if product.depth * 4 % 256 == 0 else 0)
    is_parallel = pays_to_parallelize(workload, cpu)
    cores = cpu.cores if is_parallel else 1
    image_rows = product.rows // workload.batch
    best: tuple[float, int, MatmulPlan] | None = None
    for blocks in range(1, image_rows + 1):
        row_block = math.ceil(image_rows / blocks)
        if blocks > 1 and row_block * stride * 4 > cpu.l2_kib * 1024 // 2 and row_block > 1:
            continue
        pointwise = plan_matmul(replace(product, rows=row_block), cpu, row_bytes=stride * 4)
        compute = math.ceil(row_block / pointwise.row_tile) * sum(
            tile_cycles(pointwise.row_tile, len(panel.vectors), product.depth, cpu)
            for panel in pointwise.panels(product.columns)
        )
        if pointwise.column_vectors == 1 and product.columns > lanes and cpu.fma != "by-lane":
            compute *= _LONE_VECTOR_COST
        # Every task reads all weights; about half of that hides behind the multiply-adds.
        streamed = product.depth * product.columns * 4 / CACHE_BYTES_PER_CYCLE / 2
        cycles = math.ceil(workload.batch * blocks / cores) * (compute + streamed)
        if best is None or cycles < best[0]:
            best = (cycles, row_block, pointwise)
        if row_block <= pointwise.row_tile:
            break  # smaller blocks only read the weights more often
    assert best is not None
    return GatedPlan(
        row_block=best[1],
        is_parallel=is_parallel,
        scratch_stride=stride,
        # A panel of weights stays in the L1 cache while the task's rows pass.
        pointwise=replace(best[2], outer="columns"),
    )


def write_gated(
    workload: GatedWorkload,
    plan: GatedPlan,
    *,
    x_shape: tuple[int, ...],
    gate_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
) -> PrimFunc:
    """Write the kernel (x, gate, w[, bias][, residual]) -> y, w as `pack_matmul` lays it out."""
    product = workload.pointwise
    parameters = [
        Parameter("x", x_shape),
        Parameter("gate", gate_shape),
        Parameter("w", (product.depth * product.columns,)),
    ]
    if product.epilogue.bias:
        parameters.append(Parameter("bias", (product.columns,)))
    if product.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        image_rows = product.rows // workload.batch
        blocks = math.ceil(image_rows / plan.row_block)
        with task_loop(workload.batch * blocks, plan.is_parallel) as task:
            image = task // blocks if workload.batch > 1 else 0
            block = task % blocks if workload.batch > 1 else task
            first = overlapping_start(block, plan.row_block, image_rows)
            first_row = image * image_rows + first
            scratch = kernel.scratch(plan.row_block * plan.scratch_stride)
            with T.serial(0, plan.row_block) as row:
                _scale_row(kernel, workload, plan, scratch, image, first_row + row, row)
            multiply = MatmulWriter(
                kernel,
                replace(product, rows=plan.row_block),
                plan.pointwise,
                x_stride=plan.scratch_stride,
            )
            multiply.block(scratch, first_row)

    return write_kernel(workload.dtype, parameters, body)


def _scale_row(
    kernel: KernelWriter,
    workload: GatedWorkload,
    plan: GatedPlan,
    scratch: Expr,
    image: Expr,
    x_row: Expr,
    row: Expr,
) -> None:
    depth, lanes = workload.pointwise.depth, plan.pointwise.lanes

    def scale(channel: Expr, width: int) -> None:
        x = kernel["x"].load(x_row * depth + channel, width)
        gate = kernel["gate"].load(image * depth + channel, width)
        scratch.store(row * plan.scratch_stride + channel, x * gate, width)

    if depth >= lanes:
        with T.serial(0, depth // lanes) as vector:
            scale(vector * lanes, lanes)
    for offset, width in split_lanes(depth, lanes)[depth // lanes :]:
        scale(offset, width)
