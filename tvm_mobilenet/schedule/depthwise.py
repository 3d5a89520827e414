"""Depthwise convolutions over NHWC: a register tile of neighbouring columns and channel vectors.

Neighbouring output columns share their input columns and their weights; neighbouring vectors of
channels share the cache lines that a pixel lies in. The weights are packed tap by tap, (kernel
height * kernel width, channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.depthwise_tiles import (
    DepthwiseTileWriter,
    choose_tile,
    pack_tile_weights,
    row_starts,
)
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    apply_epilogue,
    constant,
    task_loop,
    when,
    write_kernel,
)
from tvm_mobilenet.schedule.register_tile import CACHE_LINE_BYTES, Panel, column_panels
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.window import (
    RowSource,
    WidthTile,
    each_width_tile,
    row_guard,
    width_tiles,
)
from tvm_mobilenet.schedule.workload import ConvWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "DepthwisePlan",
    "DepthwiseWriter",
    "pack_depthwise",
    "plan_depthwise",
    "plan_depthwise_rows",
    "plan_depthwise_tiles",
    "uses_tiles",
    "write_depthwise",
]


@dataclass(frozen=True, kw_only=True)
class DepthwisePlan:
    """How a depthwise convolution is computed; `tuning/spaces/` says what a search may change."""

    column_tile: int
    """Output columns of the register tile."""
    channel_vectors: int
    """Vectors of channels of the register tile."""
    lanes: int
    """Elements of a full vector."""
    row_block: int
    """Output rows of one task; tasks are cut among the threads."""
    channel_block: int
    """Full panels of one task; 0 for all channels."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    row_tile: int = 0
    """Output rows of the register tile, with the channels innermost; 0 for rows one at a time,
    the channels outside."""

    def panels(self, channels: int) -> list[Panel]:
        """Return the groups of channels that a register tile takes at once."""
        return column_panels(channels, self.lanes, self.channel_vectors)


_PIXEL_BYTES = 128
"""What a tile reads of each pixel where a vector is shorter than a cache line. Pixels of a wide
layer lie a power of two apart and share few sets of the L1 cache: a line must be used up while it
is there (14x14x512 on Zen 3: 20 GFLOP/s with 32 bytes of a pixel at a time, 46 with 128)."""
_MOST_COLUMNS = 8


def plan_depthwise(workload: ConvWorkload, cpu: Cpu) -> DepthwisePlan:
    """Compute the plan from the register file and the number of cores."""
    if uses_tiles(workload, cpu):
        return plan_depthwise_tiles(workload, cpu, rows=workload.out_height)
    return plan_depthwise_rows(workload, cpu)


def uses_tiles(workload: ConvWorkload, cpu: Cpu) -> bool:
    """Tell whether a convolution is computed in tiles of rows and columns, channels innermost.

    That takes 32 registers and whole vectors of channels.
    """
    many = cpu.fma == "by-lane" or cpu.isa == "avx512"
    return many and workload.in_channels % cpu.lanes(workload.dtype) == 0


def plan_depthwise_rows(workload: ConvWorkload, cpu: Cpu) -> DepthwisePlan:
    """Compute the plan of a convolution row by row, the channels outside."""
    lanes = cpu.lanes(workload.dtype)
    channel_vectors, most_columns = _tile_bounds(workload, cpu)
    column_tile = min(
        range(1, min(most_columns, workload.out_width) + 1),
        key=lambda c: (-(-workload.out_width // c) * (c + 1.5), -c),
    )
    row_block = workload.out_height if workload.out_height <= 8 else 4
    tasks = workload.batch * -(-workload.out_height // row_block)
    panels = workload.in_channels // (lanes * channel_vectors)
    channel_block = 0
    if tasks < 2 * cpu.cores and panels > 1:
        wanted = min(panels, 2 * cpu.cores)
        channel_block = max(d for d in _divisors(panels) if d <= panels // wanted)
    return DepthwisePlan(
        column_tile=column_tile,
        channel_vectors=channel_vectors,
        lanes=lanes,
        row_block=row_block,
        channel_block=channel_block,
        is_parallel=pays_to_parallelize(workload, cpu),
    )


def _tile_bounds(workload: ConvWorkload, cpu: Cpu) -> tuple[int, int]:
    """Return how many vectors of channels a register tile has, and at most how many columns."""
    taps = workload.kernel[0] * workload.kernel[1]
    if cpu.fma == "by-lane" or cpu.vector_bits >= CACHE_LINE_BYTES * 8:
        # Accumulators, the taps of all weights if they fit, and two inputs in flight.
        free = cpu.vector_registers - 2 - min(taps, cpu.vector_registers // 3)
        return 1, max(1, min(free, _MOST_COLUMNS))
    vectors = max(1, workload.in_channels // cpu.lanes(workload.dtype))
    tiles = math.ceil(vectors / max(1, _PIXEL_BYTES * 8 // cpu.vector_bits))
    channel_vectors = math.ceil(vectors / tiles)
    # Half of the registers accumulate; weights come from memory as operands of the multiply-adds.
    return channel_vectors, max(1, min(cpu.vector_registers // 2 // channel_vectors, _MOST_COLUMNS))


def plan_depthwise_tiles(workload: ConvWorkload, cpu: Cpu, *, rows: int) -> DepthwisePlan:
    """Compute the plan of a convolution in tiles of rows and columns, for tasks of `rows` rows."""
    lanes = cpu.lanes(workload.dtype)
    is_parallel = pays_to_parallelize(workload, cpu)
    tile = choose_tile(workload, cpu, rows=rows)
    tasks = workload.batch * -(-workload.out_height // tile.rows)
    vectors = workload.in_channels // lanes
    channel_block = 0
    if is_parallel and vectors > 1 and tasks % cpu.cores and tasks < 4 * cpu.cores:
        channel_block = max(d for d in _divisors(vectors) if d <= max(1, vectors // cpu.cores))
    return DepthwisePlan(
        column_tile=tile.columns,
        channel_vectors=1,
        lanes=lanes,
        row_block=tile.rows,
        channel_block=channel_block,
        is_parallel=is_parallel,
        row_tile=tile.rows,
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def pack_depthwise(weights: np.ndarray, plan: DepthwisePlan) -> np.ndarray:
    """Return weights (channels, 1, kH, kW) as one flat array (kH * kW, channels).

    For tiles with the channels innermost it is (channels / lanes, kH * kW, lanes).
    """
    if plan.row_tile:
        return pack_tile_weights(weights, plan.lanes)
    channels = weights.shape[0]
    return np.ascontiguousarray(weights.reshape(channels, -1).T).reshape(-1)


def write_depthwise(workload: ConvWorkload, plan: DepthwisePlan) -> PrimFunc:
    """Write the kernel (x NHWC, w[, bias][, residual]) -> y NHWC, w as `pack_depthwise` gives."""
    w = workload
    y_shape = (w.batch, w.out_height, w.out_width, w.out_channels)
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.in_channels)),
        Parameter("w", (w.kernel[0] * w.kernel[1] * w.in_channels,)),
    ]
    if w.epilogue.bias:
        parameters.append(Parameter("bias", (w.out_channels,)))
    if w.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        if plan.row_tile:
            _write_tiles(kernel, w, plan)
            return
        writer = DepthwiseWriter(kernel, w, plan)
        blocks = -(-w.out_height // plan.row_block)
        panels = plan.panels(w.in_channels)
        full = [panel for panel in panels if panel.vectors == panels[0].vectors]
        block = plan.channel_block or len(full)
        channel_tasks = len(full) // block
        if len(full) % block:
            channel_tasks, block = 1, len(full)
        rows_total = w.batch * blocks
        with task_loop(rows_total * channel_tasks, plan.is_parallel) as task:
            image_block = task // channel_tasks
            image = image_block // blocks if w.batch > 1 else 0
            first_row = (image_block % blocks if w.batch > 1 else image_block) * plan.row_block
            if w.out_height % plan.row_block:
                first_row = T.min(first_row, w.out_height - plan.row_block)
            channel_task = task % channel_tasks

            def rows_of(panel: Panel, channel: Expr) -> None:
                with T.serial(0, plan.row_block) as r:
                    row = first_row + r
                    out = (image * w.out_height + row) * w.out_width
                    writer.row(image, row, kernel["y"], out, panel, channel)

            with T.serial(0, block) as index:
                rows_of(full[0], (channel_task * block + index) * full[0].width)
            for panel in panels[len(full) :]:
                # With several channel tasks the tail belongs to the first of them.
                with when(channel_task == 0 if channel_tasks > 1 else None):
                    rows_of(panel, panel.start)

    return write_kernel(w.dtype, parameters, body)


def _write_tiles(kernel: KernelWriter, workload: ConvWorkload, plan: DepthwisePlan) -> None:
    w = workload
    writer = DepthwiseTileWriter(
        kernel,
        w,
        lanes=plan.lanes,
        row_tile=plan.row_tile,
        column_tile=plan.column_tile,
    )
    vectors = w.in_channels // plan.lanes
    block = plan.channel_block or vectors
    blocks = vectors // block
    row_tiles = -(-w.out_height // plan.row_tile)
    with task_loop(w.batch * row_tiles * blocks, plan.is_parallel) as task:
        row_task = task // blocks if blocks > 1 else task
        first_vector = task % blocks * block if blocks > 1 else 0
        image = row_task // row_tiles if w.batch > 1 else 0
        index = row_task % row_tiles if w.batch > 1 else row_task
        row = row_starts(index, plan.row_tile, w.out_height, 0)
        store = writer.store_to(kernel["y"], image)
        writer.row_of_tiles(image, row, store, (first_vector, block))


class DepthwiseWriter:
    """Writes output rows of one depthwise convolution into a kernel."""

    def __init__(
        self,
        kernel: KernelWriter,
        workload: ConvWorkload,
        plan: DepthwisePlan,
        *,
        weights: str = "w",
        bias: str = "bias",
        y_stride: int | None = None,
        source: RowSource | None = None,
    ) -> None:
        self._kernel = kernel
        self._source = source or RowSource(kernel["x"])
        self._y_stride = y_stride or workload.out_channels
        self._workload = workload
        self._tiles = width_tiles(workload, plan.column_tile)
        self._w = kernel[weights]
        self._bias = kernel.get(bias) if workload.epilogue.bias else None

    def row(
        self, image: Expr, row: Expr, y: Memory, y_pixel: Expr, panel: Panel, channel: Expr
    ) -> None:
        """Write one output row of the channels of `panel`, the first of which is `channel`.

        The row's first pixel is `y_pixel` of `y`.
        """
        for tile in self._tiles:
            with each_width_tile(tile) as column:
                self._tile(tile, image, row, column, y, y_pixel, panel, channel)

    def _tile(
        self,
        tile: WidthTile,
        image: Expr,
        row: Expr,
        column: Expr,
        y: Memory,
        y_pixel: Expr,
        panel: Panel,
        channel: Expr,
    ) -> None:
        w = self._workload
        x = self._source.memory
        accumulators = [Registers(tile.columns, w.dtype, lanes) for _, lanes in panel.vectors]
        for vector, (offset, lanes) in enumerate(panel.vectors):
            bias = self._bias
            start = bias.load(channel + offset, lanes) if bias else constant(0.0, w.dtype, lanes)
            for c in range(tile.columns):
                accumulators[vector][c] = start

        def accumulate(line: Expr, tap: int, kx: int, vector: int) -> None:
            offset, lanes = panel.vectors[vector]
            weight = self._w.load(tap * w.in_channels + channel + offset, lanes)
            for c in range(tile.columns):
                if not tile.is_inside(w, c, kx):
                    continue
                in_column = (column + c) * w.stride[1] + (kx * w.dilation[1] - w.padding[1])
                pixel = x.load((line + in_column) * w.in_channels + channel + offset, lanes)
                accumulators[vector][c] = accumulators[vector][c] + pixel * weight

        for ky in range(w.kernel[0]):
            with row_guard(w, row, ky) as in_row:
                line = self._source.line(w, image, in_row)
                for kx in range(w.kernel[1]):
                    for vector in range(len(panel.vectors)):
                        accumulate(line, ky * w.kernel[1] + kx, kx, vector)
        residual = self._kernel.get("residual") if w.epilogue.residual else None
        for c in range(tile.columns):
            for vector, (offset, lanes) in enumerate(panel.vectors):
                index = (y_pixel + column + c) * self._y_stride + channel + offset
                value = apply_epilogue(
                    accumulators[vector][c],
                    w.epilogue,
                    lanes,
                    w.dtype,
                    residual=residual.load(index, lanes) if residual else None,
                )
                y.store(index, value, lanes)
