"""Matrix products on a GPU: pointwise convolutions over NHWC, gated ones, and dense layers.

A work-item computes rows x column vectors of the output. Along the depth it loads a vector of each
row and multiplies its elements by rows of the weights, so both operands are read in whole vectors.
The weights lie as they are read: `rows` has neighbouring work-items read neighbouring vectors,
`panels` has each work-item read one forward stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.precision import Accumulate
from tvm_mobilenet.schedule.emit import Expr, KernelWriter, broadcast
from tvm_mobilenet.schedule.mali.emit import (
    Argument,
    GpuRegisters,
    cast,
    element,
    grid,
    tile_start,
    write_gpu_kernel,
)
from tvm_mobilenet.schedule.mali.occupancy import (
    ADDRESSING_REGISTERS,
    ItemCost,
    choose_group,
    estimated_cycles,
    launch_fault,
    usable_lanes,
)
from tvm_mobilenet.schedule.mali.tile_output import TileOutput
from tvm_mobilenet.schedule.workload import GatedWorkload, MatmulWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = [
    "Accumulate",
    "GpuProductPlan",
    "pack_product",
    "plan_product",
    "product_cost",
    "product_fault",
    "product_items",
    "write_product",
]

_MOST_ROWS = 8
_MOST_VECTORS = 4


@dataclass(frozen=True, kw_only=True)
class GpuProductPlan:
    """How a matrix product is computed on a GPU."""

    row_tile: int
    """Rows of a work-item's tile."""
    column_vectors: int
    """Vectors of its columns."""
    lanes: int
    """Elements of such a vector."""
    depth_lanes: int
    """Elements of a row that are loaded at once."""
    depth_step: int
    """Such loads of one turn of the loop over the depth."""
    group: tuple[int, int]
    """Work-items of a work-group, along x and y."""
    order: Literal["columns", "rows"]
    """What neighbouring work-items (along x) are apart in."""
    weights: Literal["rows", "panels"]
    """How the packed weights lie: (depth, columns), or a panel after the other."""
    accumulate: Accumulate = "float32"
    """Element type of the sums."""

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.column_vectors * self.lanes


def product_items(
    workload: MatmulWorkload, plan: GpuProductPlan, batch: int = 1
) -> tuple[int, int, int]:
    """Return the work-items along columns and rows, and for how many images."""
    columns = math.ceil(workload.columns / plan.width)
    rows = math.ceil(workload.rows // batch / plan.row_tile)
    return columns, rows, batch


def product_cost(workload: MatmulWorkload, plan: GpuProductPlan) -> ItemCost:
    """Return what one work-item does."""
    words = 0.5 if workload.dtype == "float16" else 1.0
    sum_words = 0.5 if plan.accumulate == "float16" else 1.0
    chunks = math.ceil(workload.depth / plan.depth_lanes)
    x_loads, w_loads = plan.row_tile * chunks, workload.depth * plan.column_vectors
    outputs = plan.row_tile * plan.column_vectors
    is_along_columns = plan.order == "columns"
    return ItemCost(
        macs=plan.row_tile * plan.width * workload.depth,
        own_loads=(w_loads if is_along_columns else x_loads)
        + outputs * (2 if workload.epilogue.residual else 1),
        shared_loads=x_loads if is_along_columns else w_loads,
        registers=ADDRESSING_REGISTERS
        + math.ceil(
            outputs * plan.lanes * sum_words
            + (plan.row_tile * plan.depth_lanes + plan.width) * words
        ),
    )


@cache
def plan_product(
    workload: MatmulWorkload, gpu: Gpu, batch: int = 1, accumulate: Accumulate = "float32"
) -> GpuProductPlan:
    """Compute the plan from the register file, the threads that it leaves, and the load unit."""
    lanes = usable_lanes(workload.columns, gpu.lanes(workload.dtype))
    depth_lanes = usable_lanes(workload.depth, gpu.lanes(workload.dtype))
    best: tuple[tuple[float, int], GpuProductPlan, ItemCost] | None = None
    for rows in range(1, min(_MOST_ROWS, workload.rows // batch) + 1):
        for vectors in range(1, min(_MOST_VECTORS, workload.columns // lanes) + 1):
            plan = GpuProductPlan(
                row_tile=rows,
                column_vectors=vectors,
                lanes=lanes,
                depth_lanes=depth_lanes,
                depth_step=1,
                group=(1, 1),
                order="columns",
                weights="rows" if gpu.warp > 1 else "panels",
                accumulate=accumulate if workload.dtype == "float16" else "float32",
            )
            cost = product_cost(workload, plan)
            items = math.prod(product_items(workload, plan, batch))
            cycles = estimated_cycles(items, cost, gpu, workload.dtype)
            key = (cycles, cost.registers)
            if cycles < math.inf and (best is None or key < best[0]):
                best = key, plan, cost
    if best is None:
        raise AssertionError(f"no tile fits {gpu.model}")
    _, plan, cost = best
    columns, row_tiles, _ = product_items(workload, plan, batch)
    return replace(plan, group=choose_group((columns, row_tiles), cost.registers, gpu))


def product_fault(
    workload: MatmulWorkload, plan: GpuProductPlan, gpu: Gpu, batch: int = 1
) -> str | None:
    """Return why a plan cannot be used for a workload on a device, or None."""
    for name, value, most in (
        ("row_tile", plan.row_tile, workload.rows // batch),
        ("column_vectors", plan.column_vectors, workload.columns // max(1, plan.lanes)),
        ("depth_step", plan.depth_step, 16),
    ):
        if not 1 <= value <= most:
            return f"{name} {value} is not in 1 to {most}"
    if plan.lanes not in (1, 2, 4, 8, 16) or plan.depth_lanes not in (1, 2, 4, 8, 16):
        return f"vectors of {plan.lanes} and {plan.depth_lanes} are not OpenCL's"
    if plan.depth_lanes > workload.depth:
        return f"depth_lanes {plan.depth_lanes} is more than the depth, {workload.depth}"
    if plan.accumulate == "float16" and workload.dtype != "float16":
        return f"it sums {workload.dtype} in float16"
    return launch_fault(plan.group, product_cost(workload, plan).registers, gpu)


def pack_product(weights: np.ndarray, plan: GpuProductPlan) -> np.ndarray:
    """Return weights (depth, columns) as one flat array, as `plan.weights` has them.

    A panel is (depth, width); the last one is moved back to end with the columns.
    """
    if plan.weights == "rows":
        return np.ascontiguousarray(weights).reshape(-1)
    columns = weights.shape[1]
    starts = [min(s, columns - plan.width) for s in range(0, columns, plan.width)]
    return np.concatenate([weights[:, s : s + plan.width].reshape(-1) for s in starts])


def write_product(
    workload: MatmulWorkload | GatedWorkload,
    plan: GpuProductPlan,
    *,
    x_shape: tuple[int, ...] | None = None,
    gate_shape: tuple[int, ...] | None = None,
    y_shape: tuple[int, ...] | None = None,
) -> PrimFunc:
    """Write the kernel (x[, gate], w[, bias][, residual]) -> y, w as `pack_product` lays it out.

    `x_shape`, `gate_shape` and `y_shape` are the tensors' declared shapes where they are not plain
    matrices. The bias is of the sums' type.
    """
    is_gated = isinstance(workload, GatedWorkload)
    product = workload.pointwise if isinstance(workload, GatedWorkload) else workload
    batch = workload.batch if isinstance(workload, GatedWorkload) else 1
    dtype, columns = product.dtype, product.columns
    y_shape = y_shape or (product.rows, columns)
    elements = product.depth * columns
    if plan.weights == "panels":
        elements = product.depth * plan.width * math.ceil(columns / plan.width)
    arguments = [Argument("x", x_shape or (product.rows, product.depth), dtype)]
    if is_gated:
        arguments.append(Argument("gate", gate_shape or (batch, product.depth), dtype))
    arguments.append(Argument("w", (elements,), dtype))
    arguments += TileOutput.of(product, plan).arguments(columns, y_shape)

    def body(kernel: KernelWriter) -> None:
        column_tiles, row_tiles, images = product_items(product, plan, batch)
        items = (column_tiles, row_tiles)
        if plan.order == "rows":
            items = (row_tiles, column_tiles)
        with grid((*items, images), (*plan.group, 1)) as (x_index, y_index, image):
            is_swapped = plan.order == "rows"
            panel = y_index if is_swapped else x_index
            row_tile = x_index if is_swapped else y_index
            image_rows = product.rows // batch
            row = image * image_rows + tile_start(row_tile, plan.row_tile, image_rows)
            column = tile_start(panel, plan.width, columns)
            _Tile(kernel, product, plan, image * product.depth).write(row, column, panel)

    return write_gpu_kernel(arguments, body)


class _Tile:
    """Writes one tile into a kernel."""

    def __init__(
        self, kernel: KernelWriter, workload: MatmulWorkload, plan: GpuProductPlan, gate: Expr
    ) -> None:
        self._kernel = kernel
        self._w = workload
        self._plan = plan
        self._gate = gate
        self._output = TileOutput.of(workload, plan)
        self._sums = GpuRegisters(plan.row_tile * plan.column_vectors, plan.accumulate, plan.lanes)

    def write(self, row: Expr, column: Expr, panel: Expr) -> None:
        """Write the tile from `row` and `column` on, whose weights are panel `panel`."""
        plan, w = self._plan, self._w
        for vector in range(plan.column_vectors):
            start = self._output.begin(self._kernel, column + vector * plan.lanes)
            for r in range(plan.row_tile):
                self._sums[r * plan.column_vectors + vector] = start
        weights, stride = (
            (column, w.columns)
            if plan.weights == "rows"
            else (panel * (w.depth * plan.width), plan.width)
        )
        step = plan.depth_lanes * plan.depth_step
        turns = w.depth // step
        if turns:
            with T.serial(0, turns) as turn:
                for part in range(plan.depth_step):
                    k = turn * step + part * plan.depth_lanes
                    self._steps(row, k, plan.depth_lanes, weights, stride)
        k = turns * step
        while k < w.depth:
            lanes = usable_lanes(w.depth - k, plan.depth_lanes)
            self._steps(row, k, lanes, weights, stride)
            k += lanes
        self._store(row, column)

    def _steps(self, row: Expr, k: Expr, lanes: int, weights: Expr, stride: int) -> None:
        """Accumulate over `lanes` steps of the depth from `k` on."""
        plan, w = self._plan, self._w
        x, gate = self._kernel["x"], self._kernel.get("gate")
        rows = GpuRegisters(plan.row_tile, w.dtype, lanes)
        scale = None
        if gate is not None:
            scale = GpuRegisters(1, w.dtype, lanes)
            scale[0] = gate.load(self._gate + k, lanes)
        for r in range(plan.row_tile):
            value = x.load((row + r) * w.depth + k, lanes)
            rows[r] = value if scale is None else value * scale[0]
        loaded = GpuRegisters(plan.column_vectors, w.dtype, plan.lanes)
        for lane in range(lanes):
            for vector in range(plan.column_vectors):
                at = weights + (k + lane) * stride + vector * plan.lanes
                loaded[vector] = self._kernel["w"].load(at, plan.lanes)
            for r in range(plan.row_tile):
                for vector in range(plan.column_vectors):
                    self._accumulate(r, vector, element(rows[r], lane, lanes), loaded[vector])

    def _accumulate(self, r: int, vector: int, value: Expr, weight: Expr) -> None:
        plan, dtype = self._plan, self._w.dtype
        index = r * plan.column_vectors + vector
        value = broadcast(cast(value, plan.accumulate, dtype, 1), plan.lanes)
        self._sums[index] = self._sums[index] + value * cast(
            weight, plan.accumulate, dtype, plan.lanes
        )

    def _store(self, row: Expr, column: Expr) -> None:
        plan, w = self._plan, self._w
        for r in range(plan.row_tile):
            for vector in range(plan.column_vectors):
                index = (row + r) * w.columns + column + vector * plan.lanes
                total = self._sums[r * plan.column_vectors + vector]
                self._output.store(self._kernel, index, total)
