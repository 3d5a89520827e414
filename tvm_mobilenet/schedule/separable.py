"""A depthwise convolution and the pointwise one after it, as one kernel over blocks of rows.

A task computes some rows of the depthwise result into scratch memory that stays in its core's
cache, and multiplies them at once: what lies between the two convolutions is never written to the
tensor that the next kernel would have to read back. The scratch rows are padded apart, so that the
rows of a register tile do not fall on the same cache sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.depthwise import (
    DepthwisePlan,
    DepthwiseWriter,
    plan_depthwise_rows,
    plan_depthwise_tiles,
    uses_tiles,
)
from tvm_mobilenet.schedule.depthwise_tiles import (
    DepthwiseTileWriter,
    Store,
    choose_tile,
    row_starts,
)
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    overlapping_start,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.matmul import (
    MatmulPlan,
    MatmulWriter,
    best_packed_tile,
    plan_matmul,
    plan_packed_matmul,
)
from tvm_mobilenet.schedule.packed_rows import GROUP, PackedMatmulWriter, RowPacking, can_pack
from tvm_mobilenet.schedule.register_tile import Panel
from tvm_mobilenet.schedule.threads import (
    CACHE_BYTES_PER_CYCLE,
    LAUNCH_CYCLES,
    pays_to_parallelize,
)
from tvm_mobilenet.schedule.workload import ConvWorkload, SeparableWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "ApartPlan",
    "SeparablePlan",
    "group_columns",
    "packs_pair",
    "plan_packed_pair",
    "plan_separable",
    "plan_task_depthwise",
    "write_separable",
]


@dataclass(frozen=True, kw_only=True)
class SeparablePlan:
    """How the pair is computed; `tuning/spaces/` says what a search may change."""

    row_block: int
    """Output rows of one task; tasks are cut among the threads."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    scratch_stride: int
    """Elements from one pixel to the next in scratch memory."""
    depthwise: DepthwisePlan
    pointwise: MatmulPlan
    """Its `outer` loop is the outer one inside a task."""


@dataclass(frozen=True, kw_only=True)
class ApartPlan:
    """The other choice: the pair as two kernels, with what lies between in a tensor."""

    depthwise: DepthwisePlan
    pointwise: MatmulPlan


def plan_separable(workload: SeparableWorkload, cpu: Cpu) -> SeparablePlan | None:
    """Compute the plan, or return None where two kernels are better than one.

    A task reads all weights of the pointwise convolution, so there must be few tasks where the
    weights are large, and at least one for each core.
    """
    w = workload.depthwise
    lanes = cpu.lanes(w.dtype)
    is_parallel = pays_to_parallelize(workload, cpu)
    row_block = _row_block(workload, cpu, cpu.cores if is_parallel else 1)
    if row_block is None:
        return None
    if packs_pair(workload, cpu):
        return plan_packed_pair(workload, cpu, row_block, is_parallel)
    stride = w.out_channels + (lanes if w.out_channels * 4 % 256 == 0 else 0)
    rows = row_block * w.out_width
    block = replace(workload.pointwise, rows=rows)
    pointwise = plan_matmul(block, cpu, row_bytes=stride * 4)
    return SeparablePlan(
        row_block=row_block,
        is_parallel=is_parallel,
        scratch_stride=stride,
        depthwise=plan_task_depthwise(w, cpu, row_block),
        # A panel of weights stays in the L1 cache while the task's rows pass.
        pointwise=replace(pointwise, outer="columns"),
    )


def plan_task_depthwise(w: ConvWorkload, cpu: Cpu, row_block: int) -> DepthwisePlan:
    """Compute the plan of the depthwise convolution in tasks of `row_block` rows."""
    if uses_tiles(w, cpu):
        return plan_depthwise_tiles(w, cpu, rows=row_block)
    return plan_depthwise_rows(w, cpu)


def plan_packed_pair(
    workload: SeparableWorkload, cpu: Cpu, row_block: int, is_parallel: bool
) -> SeparablePlan:
    """Compute the plan for tasks of `row_block` rows where the product reads packed rows.

    The depthwise tile stores whole groups of four pixels in their packed place if the width has
    such groups; otherwise it leaves plain rows, which are packed in a pass of their own.
    """
    w = workload.depthwise
    groups = group_columns(w)
    tile = choose_tile(w, cpu, rows=row_block, column_multiple=groups)
    block = replace(workload.pointwise, rows=row_block * w.out_width)
    pointwise = plan_packed_matmul(block, cpu, row_multiple=groups)
    return SeparablePlan(
        row_block=row_block,
        is_parallel=is_parallel,
        scratch_stride=w.out_channels,
        depthwise=DepthwisePlan(
            column_tile=tile.columns,
            channel_vectors=1,
            lanes=cpu.lanes(w.dtype),
            row_block=row_block,
            channel_block=0,
            is_parallel=False,
            row_tile=tile.rows,
        ),
        pointwise=replace(pointwise, outer="columns"),
    )


def group_columns(depthwise: ConvWorkload) -> int:
    """Return what the columns of a depthwise tile, and the rows of a packed one, come in."""
    return GROUP if depthwise.out_width % GROUP == 0 else 1


def packs_pair(workload: SeparableWorkload, cpu: Cpu) -> bool:
    """Tell whether the product of a fused pair reads packed rows."""
    depthwise = workload.depthwise
    return cpu.fma == "by-lane" and can_pack(depthwise.out_channels, cpu.lanes(depthwise.dtype))


def _compute_cycles(workload: SeparableWorkload, cpu: Cpu, rows: int) -> float:
    """Return the cycles that all tasks of `rows` rows compute, what they share included."""
    w = workload.depthwise
    blocks = math.ceil(w.out_height / rows)
    if not packs_pair(workload, cpu):
        compute = workload.macs / cpu.lanes(w.dtype) / cpu.fma_units
        return compute * (blocks * rows / w.out_height)
    depthwise = choose_tile(w, cpu, rows=rows, column_multiple=group_columns(w))
    block = replace(workload.pointwise, rows=rows * w.out_width)
    _, pointwise = best_packed_tile(block, cpu, row_multiple=group_columns(w))
    return w.batch * blocks * (depthwise.instructions + pointwise) / cpu.fma_units


def _row_block(workload: SeparableWorkload, cpu: Cpu, cores: int) -> int | None:
    """Return the rows of a task, or None where the two convolutions are better left apart.

    Fused, the pair saves one launch and the two trips of what lies between. It pays with the
    rows that the last task computes again, with the input rows that neighbours both read, and
    with reading the weights once for each task.
    """
    w = workload.depthwise
    weights = workload.pointwise.depth * workload.pointwise.columns * 4
    row_bytes = w.out_width * w.out_channels * 4
    best: tuple[float, int] | None = None
    for rows in range(1, w.out_height + 1):
        blocks = math.ceil(w.out_height / rows)
        tasks = w.batch * blocks
        if tasks < cores or rows * row_bytes > cpu.l2_kib * 1024 // 2:
            continue
        rounds = math.ceil(tasks / cores)
        compute = _compute_cycles(workload, cpu, rows) / cores
        share = rounds * cores / tasks
        halo = max(0, w.kernel[0] - w.stride[0]) * row_bytes * w.stride[1]
        streamed = rounds * (weights + halo) / CACHE_BYTES_PER_CYCLE
        # The multiply-adds hide the reading as long as they take twice as long.
        cycles = compute * share + max(0.0, streamed - compute / 2)
        if best is None or cycles <= best[0]:
            best = (cycles, rows)
    if best is None:
        return None
    between = 2 * workload.pointwise.rows * workload.pointwise.depth * 4
    compute = _compute_cycles(workload, cpu, w.out_height) / cores
    apart = compute + between / cores / CACHE_BYTES_PER_CYCLE + LAUNCH_CYCLES
    return best[1] if best[0] < apart else None


def write_separable(
    workload: SeparableWorkload, plan: SeparablePlan, *, y_shape: tuple[int, ...]
) -> PrimFunc:
    """Write the kernel (x NHWC, w_depthwise[, bias_depthwise], w[, bias][, residual]) -> y NHWC."""
    w = workload.depthwise
    pointwise = workload.pointwise
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.in_channels)),
        Parameter("w_depthwise", (w.kernel[0] * w.kernel[1] * w.in_channels,)),
    ]
    if w.epilogue.bias:
        parameters.append(Parameter("bias_depthwise", (w.out_channels,)))
    parameters.append(Parameter("w", (pointwise.depth * pointwise.columns,)))
    if pointwise.epilogue.bias:
        parameters.append(Parameter("bias", (pointwise.columns,)))
    if pointwise.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        blocks = math.ceil(w.out_height / plan.row_block)
        rows = plan.row_block * w.out_width
        with task_loop(w.batch * blocks, plan.is_parallel) as task:
            image = task // blocks if w.batch > 1 else 0
            block = task % blocks if w.batch > 1 else task
            first_row = overlapping_start(block, plan.row_block, w.out_height)
            if plan.pointwise.packs_rows:
                _write_packed_task(kernel, workload, plan, image, first_row)
                return
            scratch = kernel.scratch(rows * plan.scratch_stride)
            _write_depthwise_rows(kernel, workload, plan, scratch, image, first_row)
            multiply = MatmulWriter(
                kernel,
                replace(pointwise, rows=rows),
                plan.pointwise,
                x_stride=plan.scratch_stride,
            )
            y_row = (image * w.out_height + first_row) * w.out_width
            multiply.block(scratch, y_row)

    return write_kernel(w.dtype, parameters, body)


def _write_packed_task(
    kernel: KernelWriter,
    workload: SeparableWorkload,
    plan: SeparablePlan,
    image: Expr,
    first_row: Expr,
) -> None:
    """Write the rows of one task: depthwise into packed rows, and their product."""
    w = workload.depthwise
    rows = plan.row_block * w.out_width
    multiply = PackedMatmulWriter(kernel, replace(workload.pointwise, rows=rows), plan.pointwise)
    packing = multiply.packing
    packed = kernel.scratch(packing.elements(rows))
    writer = DepthwiseTileWriter(
        kernel,
        w,
        lanes=plan.depthwise.lanes,
        row_tile=plan.depthwise.row_tile,
        column_tile=plan.depthwise.column_tile,
        weights="w_depthwise",
        bias="bias_depthwise",
    )
    is_direct = w.out_width % GROUP == 0
    plain = None if is_direct else kernel.scratch(rows * w.out_channels)
    store = (
        _store_packed(packed, packing, w.out_width, first_row)
        if plain is None
        else _store_plain(plain, w.out_width, w.out_channels, first_row, plan.depthwise.lanes)
    )
    vectors = w.in_channels // plan.depthwise.lanes
    with T.serial(0, math.ceil(plan.row_block / plan.depthwise.row_tile)) as index:
        row = row_starts(index, plan.depthwise.row_tile, plan.row_block, first_row)
        writer.row_of_tiles(image, row, store, (0, vectors))
    if plain is not None:
        full, rest = divmod(rows, packing.rows)
        with T.serial(0, full) as tile:
            packing.pack(plain, tile * packing.rows, packed, tile, packing.rows)
        if rest:
            packing.pack(plain, full * packing.rows, packed, full, rest)
    y_row = (image * w.out_height + first_row) * w.out_width
    multiply.all_panels(packed, y_row, rows)


def _store_packed(packed: Memory, packing: RowPacking, width: int, first_row: Expr) -> Store:
    """Return what stores depthwise tiles as packed rows, group by group."""

    def open_tile(
        rows: int, columns: int, row: Expr, column: Expr
    ) -> Callable[[Expr, list[Expr]], None]:
        def store(channel: Expr, values: list[Expr]) -> None:
            for r in range(rows):
                for c in range(0, columns, GROUP):
                    pixel = (row - first_row + r) * width + column + c
                    at = packing.offset(pixel) + channel // packing.lanes * packing.block
                    group = values[r * columns + c : r * columns + c + GROUP]
                    packing.store(packed, at, group)

        return store

    return open_tile


def _store_plain(plain: Memory, width: int, stride: int, first_row: Expr, lanes: int) -> Store:
    """Return what stores depthwise tiles as rows of pixels, `stride` elements apart."""

    def open_tile(
        rows: int, columns: int, row: Expr, column: Expr
    ) -> Callable[[Expr, list[Expr]], None]:
        def store(channel: Expr, values: list[Expr]) -> None:
            for i in range(rows * columns):
                pixel = (row - first_row + i // columns) * width + column + i % columns
                plain.store(pixel * stride + channel, values[i], lanes)

        return store

    return open_tile


def _write_depthwise_rows(
    kernel: KernelWriter,
    workload: SeparableWorkload,
    plan: SeparablePlan,
    scratch: Memory,
    image: Expr,
    first_row: Expr,
) -> None:
    w = workload.depthwise
    if plan.depthwise.row_tile:
        tiles = DepthwiseTileWriter(
            kernel,
            w,
            lanes=plan.depthwise.lanes,
            row_tile=plan.depthwise.row_tile,
            column_tile=plan.depthwise.column_tile,
            weights="w_depthwise",
            bias="bias_depthwise",
        )
        store = _store_plain(
            scratch, w.out_width, plan.scratch_stride, first_row, plan.depthwise.lanes
        )
        with T.serial(0, math.ceil(plan.row_block / plan.depthwise.row_tile)) as index:
            row = row_starts(index, plan.depthwise.row_tile, plan.row_block, first_row)
            tiles.row_of_tiles(image, row, store, (0, w.in_channels // plan.depthwise.lanes))
        return
    writer = DepthwiseWriter(
        kernel,
        w,
        plan.depthwise,
        weights="w_depthwise",
        bias="bias_depthwise",
        y_stride=plan.scratch_stride,
    )
    panels = plan.depthwise.panels(w.in_channels)
    full = [panel for panel in panels if panel.vectors == panels[0].vectors]

    def rows_of(panel: Panel, channel: Expr) -> None:
        with T.serial(0, plan.row_block) as r:
            writer.row(image, first_row + r, scratch, r * w.out_width, panel, channel)

    with T.serial(0, len(full)) as index:
        rows_of(full[0], index * full[0].width)
    for panel in panels[len(full) :]:
        rows_of(panel, panel.start)
