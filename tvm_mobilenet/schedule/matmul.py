"""Matrix products: pointwise convolutions over NHWC and dense layers.

The weights are packed at compile time into panels of neighbouring columns, each laid out depth by
depth, so that the inner loop reads them in one forward stream. A register tile of rows x columns
accumulates over the whole depth; rows that do not divide are covered by moving the last tile back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    apply_epilogue,
    broadcast,
    by_lane,
    constant,
    overlapping_start,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.packed_rows import GROUP, PackedMatmulWriter, can_pack, depth_step
from tvm_mobilenet.schedule.register_tile import (
    CACHE_LINE_BYTES,
    Panel,
    RegisterTile,
    can_assemble,
    column_panels,
    conflict_free_rows,
    packed_product_cost,
    packed_tiles,
    register_tiles,
    tile_cycles,
)
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.workload import Epilogue, MatmulWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "MatmulPlan",
    "MatmulWriter",
    "best_packed_tile",
    "pack_matmul",
    "packed_depth_step",
    "plan_matmul",
    "plan_packed_matmul",
    "write_matmul",
]

_ASSEMBLED_STEPS = 32
"""The loop costs 2 instructions of 530 then, in 2 KiB of code."""
_PACKED_FROM_ROWS = 3
"""Fewer rows than that are multiplied where they lie: packing them would not be repaid."""


_AHEAD_BYTES = 4096
"""Cascade Lake reads 16 MiB at 21 GB/s with this much asked for ahead, at 14 without."""
_LINE_ELEMENTS = CACHE_LINE_BYTES // 4


@dataclass(frozen=True, kw_only=True)
class MatmulPlan:
    """How a matrix product is computed; `tuning/spaces/` says what a search may change."""

    row_tile: int
    """Rows of the register tile."""
    column_vectors: int
    """Vectors of the register tile, and of a weight panel."""
    lanes: int
    """Elements of a full vector."""
    by_lane: bool
    """Multiply by a lane of a loaded vector instead of a broadcast scalar."""
    outer: Literal["rows", "columns"]
    """Which loop is outside, and is cut among the threads."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    packs_rows: bool = False
    """Multiply rows that are packed in groups of four; only where lanes are multiplied by."""
    depth_step: int = 1
    """Steps of the depth that are written out in the inner loop. Where lanes are multiplied by
    without packing, it is a vector's lanes whatever this says."""
    in_assembly: bool = False
    """Write the tiles of packed rows in assembly, with loads of four vectors; only AArch64."""
    prefetches: bool = field(default=False, metadata={"is_later": True})
    """Ask for the next panel of weights while a panel is multiplied. Not with packed rows."""

    def panels(self, columns: int) -> list[Panel]:
        """Return the weight panels of this plan."""
        return column_panels(columns, self.lanes, self.column_vectors)


def plan_matmul(workload: MatmulWorkload, cpu: Cpu, *, row_bytes: int | None = None) -> MatmulPlan:
    """Compute the plan from the register file, the caches and the number of cores.

    `row_bytes` is the distance between two rows of `x` where it is not a plain matrix.
    """
    lanes = cpu.lanes(workload.dtype)
    if (
        cpu.fma == "by-lane"
        and can_pack(workload.depth, lanes)
        and workload.rows >= _PACKED_FROM_ROWS
        and row_bytes is None
        and workload.epilogue.activation != "sigmoid"  # the assembly has none
    ):
        return plan_packed_matmul(workload, cpu)
    max_rows = conflict_free_rows(row_bytes or workload.depth * 4, cpu)
    best: tuple[float, RegisterTile] | None = None
    for tile in register_tiles(cpu):
        if tile.rows > min(workload.rows, max_rows):
            continue
        row_tiles = math.ceil(workload.rows / tile.rows)
        cycles = row_tiles * sum(
            tile_cycles(tile.rows, len(panel.vectors), workload.depth, cpu)
            for panel in column_panels(workload.columns, lanes, tile.vectors)
        )
        if best is None or cycles < best[0]:
            best = (cycles, tile)
    if best is None:
        raise AssertionError(f"no register tile fits {cpu}")
    tile = best[1]
    return MatmulPlan(
        row_tile=tile.rows,
        column_vectors=tile.vectors,
        lanes=lanes,
        by_lane=cpu.fma == "by-lane",
        outer=_outer_loop(workload, tile, lanes, cpu),
        is_parallel=pays_to_parallelize(workload, cpu),
        prefetches=cpu.fma == "broadcast",
    )


def best_packed_tile(
    workload: MatmulWorkload, cpu: Cpu, *, row_multiple: int = 1
) -> tuple[RegisterTile, float]:
    """Return the tile for packed rows that takes the fewest instructions, and how many.

    Its rows are a multiple of `row_multiple`, where whole groups are stored.
    """
    in_assembly, lanes = can_assemble(cpu), cpu.lanes(workload.dtype)
    costs = [
        (packed_cost(workload, cpu, tile, in_assembly=in_assembly), -tile.rows, tile)
        for tile in packed_tiles(cpu, in_assembly=in_assembly, lanes=lanes)
        if tile.rows % row_multiple == 0 and tile.rows <= math.ceil(workload.rows / GROUP) * GROUP
    ]
    cost, _, tile = min(costs, key=lambda entry: entry[:2])
    return tile, cost


def packed_cost(
    workload: MatmulWorkload, cpu: Cpu, tile: RegisterTile, *, in_assembly: bool
) -> float:
    """Return the instructions of a product of packed rows with a tile."""
    lanes = cpu.lanes(workload.dtype)
    panels = column_panels(workload.columns, lanes, tile.vectors)
    step = packed_depth_step(workload, in_assembly=in_assembly, lanes=lanes)
    return packed_product_cost(
        tile,
        workload.rows,
        workload.depth,
        panels,
        step,
        cpu,
        in_assembly=in_assembly,
        lanes=lanes,
    )


def packed_depth_step(workload: MatmulWorkload, *, in_assembly: bool, lanes: int = 4) -> int:
    """Return the steps of the depth to write out; assembly has code for a rest, LLVM's has not."""
    if in_assembly:
        return min(_ASSEMBLED_STEPS, workload.depth)
    return depth_step(workload.depth, lanes)


def plan_packed_matmul(workload: MatmulWorkload, cpu: Cpu, *, row_multiple: int = 1) -> MatmulPlan:
    """Compute the plan of a product of packed rows, in tiles of a multiple of rows."""
    lanes = cpu.lanes(workload.dtype)
    tile, _ = best_packed_tile(workload, cpu, row_multiple=row_multiple)
    in_assembly = can_assemble(cpu)
    return MatmulPlan(
        row_tile=tile.rows,
        column_vectors=tile.vectors,
        lanes=lanes,
        by_lane=True,
        outer=_outer_loop(workload, tile, lanes, cpu),
        is_parallel=pays_to_parallelize(workload, cpu),
        packs_rows=True,
        depth_step=packed_depth_step(workload, in_assembly=in_assembly, lanes=lanes),
        in_assembly=in_assembly,
    )


def _outer_loop(
    workload: MatmulWorkload, tile: RegisterTile, lanes: int, cpu: Cpu
) -> Literal["rows", "columns"]:
    """Choose the loop that leaves the threads balanced; between equals, the one that moves less.

    With the rows outside, the weights are read again for each row tile; with the columns outside,
    the input for each panel. What is read again should fit the L2 cache.
    """
    row_tiles = math.ceil(workload.rows / tile.rows)
    panels = len(column_panels(workload.columns, lanes, tile.vectors))

    def idle_share(tasks: int) -> float:
        return math.ceil(tasks / cpu.cores) * cpu.cores / tasks - 1

    item = 4
    weights = workload.depth * workload.columns * item
    inputs = workload.rows * workload.depth * item
    l2_bytes = cpu.l2_kib * 1024
    rows_cost = idle_share(row_tiles) + (0.1 if weights > l2_bytes // 2 else 0)
    columns_cost = idle_share(panels) + (0.1 if inputs > l2_bytes // 2 else 0)
    if abs(rows_cost - columns_cost) > 0.02:
        return "rows" if rows_cost < columns_cost else "columns"
    return "rows" if weights <= inputs else "columns"


def pack_matmul(weights: np.ndarray, plan: MatmulPlan) -> np.ndarray:
    """Return weights (depth, columns) as one flat array, panel by panel, each (depth, width)."""
    panels = plan.panels(weights.shape[1])
    return np.concatenate(
        [weights[:, p.start : p.start + p.width].reshape(-1) for p in panels], dtype=weights.dtype
    )


def write_matmul(
    workload: MatmulWorkload,
    plan: MatmulPlan,
    *,
    x_shape: tuple[int, ...] | None = None,
    y_shape: tuple[int, ...] | None = None,
) -> PrimFunc:
    """Write the kernel (x, w[, bias][, residual]) -> y, w as `pack_matmul` lays it out.

    `x_shape` and `y_shape` are the tensors' declared shapes where they are not plain matrices.
    """
    x_shape = x_shape or (workload.rows, workload.depth)
    y_shape = y_shape or (workload.rows, workload.columns)
    parameters = [Parameter("x", x_shape), Parameter("w", (workload.depth * workload.columns,))]
    if workload.epilogue.bias:
        parameters.append(Parameter("bias", (workload.columns,)))
    if workload.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        if plan.packs_rows:
            _write_packed(kernel, workload, plan)
            return
        writer = MatmulWriter(kernel, workload, plan)
        row_tiles = math.ceil(workload.rows / plan.row_tile)
        if plan.outer == "rows":
            with task_loop(row_tiles, plan.is_parallel) as index:
                row = overlapping_start(index, plan.row_tile, workload.rows)
                writer.all_columns(kernel["x"], row, row)
        else:
            writer.parallel_columns(kernel["x"], row_tiles)

    return write_kernel(workload.dtype, parameters, body)


def _write_packed(kernel: KernelWriter, workload: MatmulWorkload, plan: MatmulPlan) -> None:
    """Write the pass that packs the rows, and the product of what it has packed."""
    writer = PackedMatmulWriter(kernel, workload, plan)
    packing, rows = writer.packing, workload.rows
    packed = kernel.scratch(packing.elements(rows))
    full, rest = divmod(rows, packing.rows)
    with task_loop(full, plan.is_parallel) as tile:
        packing.pack(kernel["x"], tile * packing.rows, packed, tile, packing.rows)
    if rest:
        packing.pack(kernel["x"], full * packing.rows, packed, full, rest)
    if plan.outer == "columns":
        with task_loop(writer.panels, plan.is_parallel) as index:
            writer.one_panel(index, packed, rows)
    else:
        with task_loop(math.ceil(rows / packing.rows), plan.is_parallel) as index:
            writer.one_tile(index, packed, rows)


@dataclass(frozen=True)
class _Ahead:
    """Which weights a register tile asks for ahead."""

    distance: Expr
    """Elements from the first of its own panel."""
    step: int
    """Elements a step of the depth."""
    into_l1: bool


class MatmulWriter:
    """Writes tiles of one matrix product into a kernel, whose `residual` it adds if it has one."""

    def __init__(
        self,
        kernel: KernelWriter,
        workload: MatmulWorkload,
        plan: MatmulPlan,
        *,
        x_stride: int | None = None,
        weights: str = "w",
        bias: str = "bias",
        y: Memory | None = None,
    ) -> None:
        self._w = kernel[weights]
        self._bias = kernel.get(bias) if workload.epilogue.bias else None
        self._residual = kernel.get("residual") if workload.epilogue.residual else None
        self._y = y or kernel["y"]
        self._x_stride = x_stride or workload.depth
        self._workload = workload
        self._plan = plan
        panels = plan.panels(workload.columns)
        width = panels[0].width
        self._full = [panel for panel in panels if panel.vectors == panels[0].vectors]
        self._tail = panels[len(self._full) :]
        self._width = width

    def block(self, x: Memory, y_row: Expr, x_row: Expr = 0) -> None:
        """Write all rows, from `y_row` of the output on, without threads of its own.

        They are read from `x_row` of `x` on.
        """
        rows, tile = self._workload.rows, self._plan.row_tile
        row_tiles = math.ceil(rows / tile)
        if self._plan.outer == "rows":
            with T.serial(0, row_tiles) as index:
                row = overlapping_start(index, tile, rows)
                self.all_columns(x, x_row + row, y_row + row)
            return
        with T.serial(0, len(self._full)) as panel, T.serial(0, row_tiles) as index:
            row = overlapping_start(index, tile, rows)
            ahead = self._next_panel(index, row_tiles)
            self.tile(x, x_row + row, y_row + row, self._full[0], panel * self._width, ahead)
        for tail in self._tail:
            with T.serial(0, row_tiles) as index:
                row = overlapping_start(index, tile, rows)
                self.tile(x, x_row + row, y_row + row, tail, tail.start)

    def all_columns(self, x: Memory, x_row: Expr, y_row: Expr) -> None:
        """Write one row tile over every panel, weights innermost."""
        # Of several row tiles only the first would find weights that are not in the cache yet.
        is_alone = self._workload.rows <= self._plan.row_tile
        ahead = self._next_panel(0, 1) if is_alone else None
        with T.serial(0, len(self._full)) as index:
            self.tile(x, x_row, y_row, self._full[0], index * self._width, ahead)
        for panel in self._tail:
            self.tile(x, x_row, y_row, panel, panel.start)

    def parallel_columns(self, x: Memory, row_tiles: int) -> None:
        """Write every row tile of a panel, the panels cut among the threads."""
        tasks = len(self._full) + len(self._tail)
        with task_loop(tasks, self._plan.is_parallel) as index:
            if not self._tail:
                self._panel_rows(x, row_tiles, self._full[0], index * self._width)
                return
            with T.If(index < len(self._full)):
                with T.Then():
                    self._panel_rows(x, row_tiles, self._full[0], index * self._width)
                with T.Else():
                    for panel in self._tail:
                        self._panel_rows(x, row_tiles, panel, panel.start)

    def _panel_rows(self, x: Memory, row_tiles: int, panel: Panel, start: Expr) -> None:
        with T.serial(0, row_tiles) as tile:
            row = overlapping_start(tile, self._plan.row_tile, self._workload.rows)
            self.tile(x, row, row, panel, start, self._next_panel(tile, row_tiles))

    def _next_panel(self, tile: Expr, row_tiles: int) -> _Ahead | None:
        """Return what row tile `tile` of a panel asks for ahead: its share of the next panel."""
        if not self._plan.prefetches:
            return None
        depth, width = self._workload.depth, self._width
        if row_tiles == 1:
            # Weights pass once: far enough ahead for memory, and over the end of a page, which
            # the hardware's prefetchers do not cross.
            distance = _AHEAD_BYTES // 4
            return _Ahead(distance, width, into_l1=True)
        share = -(-width // row_tiles)
        return _Ahead(depth * width + tile * (depth * share), share, into_l1=False)

    def tile(
        self,
        x: Memory,
        x_row: Expr,
        y_row: Expr,
        panel: Panel,
        start: Expr,
        ahead: _Ahead | None = None,
        *,
        rows: int | None = None,
        weights_at: Expr | None = None,
        begins_at_y: bool = False,
        epilogue: Epilogue | None = None,
    ) -> None:
        """Write one register tile: rows from `x_row` of `x`, columns from `start`.

        Args:
            x: the rows to multiply.
            x_row: the first of them.
            y_row: the first row of the output.
            panel: the columns, from `start` on.
            start: the first column.
            ahead: the weights to ask for meanwhile.
            rows: of the tile; None for the plan's.
            weights_at: where the panel's weights begin; None for the product's own place.
            begins_at_y: add to what the output holds, instead of to the bias.
            epilogue: what is done before storing; None for the workload's.
        """
        depth, columns = self._workload.depth, self._workload.columns
        dtype = self._workload.dtype
        epilogue = epilogue or self._workload.epilogue
        rows = rows or self._plan.row_tile
        bias, residual, y = self._bias, self._residual, self._y
        accumulators = [Registers(rows, dtype, lanes) for _, lanes in panel.vectors]
        for vector, (offset, lanes) in enumerate(panel.vectors):
            first = bias.load(start + offset, lanes) if bias else constant(0.0, dtype, lanes)
            for r in range(rows):
                if begins_at_y:
                    first = y.load((y_row + r) * columns + start + offset, lanes)
                accumulators[vector][r] = first
        base = start * depth if weights_at is None else weights_at
        self._reduce(x, x_row, panel, base, accumulators, rows, ahead)
        for vector, (offset, lanes) in enumerate(panel.vectors):
            column = start + offset
            for r in range(rows):
                index = (y_row + r) * columns + column
                value = apply_epilogue(
                    accumulators[vector][r],
                    epilogue,
                    lanes,
                    dtype,
                    residual.load(index, lanes) if residual and epilogue.residual else None,
                )
                y.store(index, value, lanes)

    def _reduce(
        self,
        x: Memory,
        x_row: Expr,
        panel: Panel,
        w_base: Expr,
        accumulators: list[Registers],
        rows: int,
        ahead: _Ahead | None,
    ) -> None:
        """Accumulate over the depth, a vector of steps at a time where lanes are multiplied by."""
        depth = self._workload.depth
        chunk = self._plan.lanes if self._plan.by_lane else self._plan.depth_step
        w = self._w

        def step(k: Expr, inputs: Sequence[Callable[[int], Expr]]) -> None:
            # The order keeps few operands alive at a time: LLVM's scheduler stays close to it.
            def weight(vector: int) -> Expr:
                offset, lanes = panel.vectors[vector]
                return w.load(w_base + k * panel.width + offset, lanes)

            def accumulate(r: int, vector: int, weights: Expr) -> None:
                # A narrow tail vector takes the same value spread over fewer lanes.
                value = inputs[r](panel.vectors[vector][1]) * weights
                accumulators[vector][r] = accumulators[vector][r] + value

            vectors = range(len(panel.vectors))
            if ahead is not None:
                first = w_base + ahead.distance + k * ahead.step
                for line in range(0, ahead.step, _LINE_ELEMENTS):
                    w.prefetch(first + line, into_l1=ahead.into_l1)
            if self._plan.by_lane:
                for vector in vectors:
                    weights = weight(vector)
                    for r in range(rows):
                        accumulate(r, vector, weights)
            else:
                all_weights = [weight(vector) for vector in vectors]
                for r in range(rows):
                    for vector in vectors:
                        accumulate(r, vector, all_weights[vector])

        def spread(r: int, k: Expr) -> Callable[[int], Expr]:
            return partial(broadcast, x.load((x_row + r) * self._x_stride + k))

        if depth >= chunk:
            with T.serial(0, depth // chunk) as outer:
                if not self._plan.by_lane:
                    for written in range(chunk):
                        k = outer * chunk + written
                        step(k, [spread(r, k) for r in range(rows)])
                else:
                    loaded = Registers(rows, self._workload.dtype, chunk)
                    for r in range(rows):
                        loaded[r] = x.load((x_row + r) * self._x_stride + outer * chunk, chunk)
                    for lane in range(chunk):
                        picked = [partial(by_lane, loaded[r], lane) for r in range(rows)]
                        step(outer * chunk + lane, picked)
        for k in range(depth - depth % chunk, depth):
            step(k, [spread(r, k) for r in range(rows)])
