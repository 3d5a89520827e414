"""A pointwise convolution of several tensors side by side, which are never written as one.

A task brings some rows of all parts together in scratch memory that stays in its core's cache and
multiplies them at once, as `gated` does with scaled rows. What is one pixel for the whole image (a
pooled branch) is laid beside every row there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    overlapping_start,
    split_lanes,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.gated import GatedPlan, plan_gated
from tvm_mobilenet.schedule.matmul import MatmulWriter
from tvm_mobilenet.schedule.workload import GatedWorkload, JoinedWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["plan_joined", "write_joined"]


def plan_joined(workload: JoinedWorkload, cpu: Cpu) -> GatedPlan:
    """Compute the plan: rows in scratch memory cost the same whatever is done to them there."""
    return plan_gated(GatedWorkload(batch=workload.batch, pointwise=workload.pointwise), cpu)


def write_joined(
    workload: JoinedWorkload,
    plan: GatedPlan,
    *,
    x_shapes: Sequence[tuple[int, ...]],
    y_shape: tuple[int, ...],
) -> PrimFunc:
    """Write the kernel (parts..., w[, bias][, residual]) -> y, w as `pack_matmul` lays it out."""
    product = workload.pointwise
    parameters = [Parameter(f"x{index}", shape) for index, shape in enumerate(x_shapes)]
    parameters.append(Parameter("w", (product.depth * product.columns,)))
    if product.epilogue.bias:
        parameters.append(Parameter("bias", (product.columns,)))
    if product.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        image_rows = product.rows // workload.batch
        blocks = math.ceil(image_rows / plan.row_block)
        writer = MatmulWriter(
            kernel,
            replace(product, rows=plan.row_block),
            plan.pointwise,
            x_stride=plan.scratch_stride,
        )
        with task_loop(workload.batch * blocks, plan.is_parallel) as task:
            image = task // blocks if workload.batch > 1 else 0
            block = task % blocks if workload.batch > 1 else task
            first_row = image * image_rows + overlapping_start(block, plan.row_block, image_rows)
            scratch = kernel.scratch(plan.row_block * plan.scratch_stride)
            with T.serial(0, plan.row_block) as row:
                _join_row(kernel, workload, plan, scratch, image, first_row + row, row)
            writer.block(scratch, first_row)

    return write_kernel(workload.dtype, parameters, body)


def _join_row(
    kernel: KernelWriter,
    workload: JoinedWorkload,
    plan: GatedPlan,
    scratch: Memory,
    image: Expr,
    x_row: Expr,
    row: Expr,
) -> None:
    lanes, offset = plan.pointwise.lanes, 0
    for index, (channels, is_pixel) in enumerate(workload.parts):
        x, source = kernel[f"x{index}"], (image if is_pixel else x_row) * channels
        out = row * plan.scratch_stride + offset
        full = channels // lanes
        if full:
            with T.serial(0, full) as vector:
                at = vector * lanes
                scratch.store(out + at, x.load(source + at, lanes), lanes)
        for at, width in split_lanes(channels, lanes)[full:]:
            scratch.store(out + at, x.load(source + at, width), width)
        offset += channels
