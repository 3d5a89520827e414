"""Dense convolutions of any kernel size, the stem of every MobileNet among them.

The same register tile as a matrix product, output columns x output channels, accumulated over the
taps and the input channels. The input may be NCHW, since its elements are broadcast one at a time:
the image needs no transpose before the first layer. Weights are packed panel by panel, each
(kH, kW, in channels, panel width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.convolution_lanes import (
    LaneConvWriter,
    can_use_lanes,
    choose_lane_tile,
)
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    apply_epilogue,
    broadcast,
    constant,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.register_tile import Panel, column_panels, register_tiles, tile_cycles
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

__all__ = ["ConvPlan", "ConvWriter", "pack_conv", "plan_conv", "write_conv"]


@dataclass(frozen=True, kw_only=True)
class ConvPlan:
    """How a convolution is computed; `tuning/spaces/` says what a search may change."""

    column_tile: int
    """Output columns of the register tile."""
    channel_vectors: int
    """Vectors of output channels of the register tile, and of a weight panel."""
    lanes: int
    """Elements of a full vector."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    by_lane: bool = False
    """Load columns of the image as vectors and multiply by their lanes."""

    def panels(self, channels: int) -> list[Panel]:
        """Return the weight panels of this plan."""
        return column_panels(channels, self.lanes, self.channel_vectors)


def plan_conv(workload: ConvWorkload, cpu: Cpu) -> ConvPlan:
    """Compute the plan from the register file; every row of output is one task."""
    lanes = cpu.lanes(workload.dtype)
    if can_use_lanes(workload, cpu):
        columns, vectors = choose_lane_tile(workload, cpu)
        return ConvPlan(
            column_tile=columns,
            channel_vectors=vectors,
            lanes=lanes,
            is_parallel=pays_to_parallelize(workload, cpu),
            by_lane=True,
        )
    depth = workload.kernel[0] * workload.kernel[1] * workload.in_channels
    # Strided inputs and guarded rows cost registers too, and LLVM spills a larger tile: on Zen 4
    # the stem runs at 105 GFLOP/s with 8 accumulators, 88 with 16, 49 with 28.
    most = cpu.vector_registers // 2 if cpu.fma == "by-lane" else 8
    best: tuple[float, ConvPlan] | None = None
    for tile in register_tiles(cpu):
        if tile.rows > workload.out_width or tile.rows * tile.vectors > most:
            continue
        panels = column_panels(workload.out_channels, lanes, tile.vectors)
        cycles = -(-workload.out_width // tile.rows) * sum(
            tile_cycles(tile.rows, len(panel.vectors), depth, cpu) for panel in panels
        )
        if best is None or cycles < best[0]:
            plan = ConvPlan(
                column_tile=tile.rows,
                channel_vectors=tile.vectors,
                lanes=lanes,
                is_parallel=pays_to_parallelize(workload, cpu),
            )
            best = (cycles, plan)
    if best is None:
        raise AssertionError(f"no register tile fits {cpu}")
    return best[1]


def pack_conv(weights: np.ndarray, plan: ConvPlan) -> np.ndarray:
    """Return weights (O, I, kH, kW) as one flat array, panel by panel, each (kH, kW, I, width).

    Where lanes are multiplied by, each panel is (I, kH, kW, width).
    """
    by_tap = weights.transpose(1, 2, 3, 0) if plan.by_lane else weights.transpose(2, 3, 1, 0)
    panels = plan.panels(weights.shape[0])
    return np.concatenate(
        [by_tap[..., p.start : p.start + p.width].reshape(-1) for p in panels], dtype=weights.dtype
    )


def write_conv(workload: ConvWorkload, plan: ConvPlan) -> PrimFunc:
    """Write the kernel (x in `input_layout`, w[, bias][, residual]) -> y NHWC."""
    w = workload
    x_shape = (
        (w.batch, w.height, w.width, w.in_channels)
        if w.input_layout == "NHWC"
        else (w.batch, w.in_channels, w.height, w.width)
    )
    y_shape = (w.batch, w.out_height, w.out_width, w.out_channels)
    taps = w.kernel[0] * w.kernel[1]
    parameters = [
        Parameter("x", x_shape),
        Parameter("w", (taps * w.in_channels * w.out_channels,)),
    ]
    if w.epilogue.bias:
        parameters.append(Parameter("bias", (w.out_channels,)))
    if w.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        panels = plan.panels(w.out_channels)
        full = [panel for panel in panels if panel.vectors == panels[0].vectors]
        writer = LaneConvWriter(kernel, w, plan.lanes) if plan.by_lane else ConvWriter(kernel, w)
        tiles = width_tiles(w, plan.column_tile)
        with task_loop(w.batch * w.out_height, plan.is_parallel) as task:
            image = task // w.out_height if w.batch > 1 else 0
            row = task % w.out_height if w.batch > 1 else task
            with T.serial(0, len(full)) as index:
                for tile in tiles:
                    with each_width_tile(tile) as column:
                        writer.tile(tile, image, row, column, full[0], index * full[0].width)
            for panel in panels[len(full) :]:
                for tile in tiles:
                    with each_width_tile(tile) as column:
                        writer.tile(tile, image, row, column, panel, panel.start)

    return write_kernel(w.dtype, parameters, body)


class ConvWriter:
    """Writes register tiles of one convolution."""

    def __init__(
        self,
        kernel: KernelWriter,
        workload: ConvWorkload,
        *,
        weights: str = "w",
        bias: str = "bias",
        source: RowSource | None = None,
        y: Memory | None = None,
    ) -> None:
        self._kernel = kernel
        self._workload = workload
        self._w = kernel[weights]
        self._bias = kernel.get(bias) if workload.epilogue.bias else None
        self._residual = kernel.get("residual") if workload.epilogue.residual else None
        self._source = source or RowSource(kernel["x"])
        self._y = y or kernel["y"]

    def tile(
        self,
        tile: WidthTile,
        image: Expr,
        row: Expr,
        column: Expr,
        panel: Panel,
        start: Expr,
        y_pixel: Expr | None = None,
    ) -> None:
        """Write `tile.columns` output pixels of one row for the channels of one panel.

        The row's first pixel is `y_pixel` of the output; None for where it is in the tensor.
        """
        w = self._workload
        bias, residual = self._bias, self._residual
        if y_pixel is None:
            y_pixel = (image * w.out_height + row) * w.out_width
        accumulators = [Registers(tile.columns, w.dtype, lanes) for _, lanes in panel.vectors]
        for vector, (offset, lanes) in enumerate(panel.vectors):
            first = bias.load(start + offset, lanes) if bias else constant(0.0, w.dtype, lanes)
            for c in range(tile.columns):
                accumulators[vector][c] = first
        for ky in range(w.kernel[0]):
            with row_guard(w, row, ky) as in_row:
                self._kernel_row(tile, image, in_row, column, ky, panel, start, accumulators)
        for vector, (offset, lanes) in enumerate(panel.vectors):
            for c in range(tile.columns):
                index = (y_pixel + column + c) * w.out_channels + start + offset
                value = apply_epilogue(
                    accumulators[vector][c],
                    w.epilogue,
                    lanes,
                    w.dtype,
                    residual=residual.load(index, lanes) if residual else None,
                )
                self._y.store(index, value, lanes)

    def _kernel_row(
        self,
        tile: WidthTile,
        image: Expr,
        in_row: Expr,
        column: Expr,
        ky: int,
        panel: Panel,
        start: Expr,
        accumulators: list[Registers],
    ) -> None:
        """Accumulate one row of taps over all input channels."""
        w = self._workload

        def step(kx: int, channel: Expr) -> None:
            depth = (ky * w.kernel[1] + kx) * w.in_channels + channel
            weights_at = start * (w.kernel[0] * w.kernel[1] * w.in_channels) + depth * panel.width
            for c in range(tile.columns):
                if not tile.is_inside(w, c, kx):
                    continue
                in_column = (column + c) * w.stride[1] + (kx * w.dilation[1] - w.padding[1])
                value = self._source.memory.load(self._input_at(image, in_row, in_column, channel))
                for vector, (offset, lanes) in enumerate(panel.vectors):
                    weight = self._w.load(weights_at + offset, lanes)
                    accumulators[vector][c] = (
                        accumulators[vector][c] + broadcast(value, lanes) * weight
                    )

        for kx in range(w.kernel[1]):
            with T.serial(0, w.in_channels) as channel:
                step(kx, channel)

    def _input_at(self, image: Expr, row: Expr, column: Expr, channel: Expr) -> Expr:
        w = self._workload
        if w.input_layout == "NHWC":
            return (self._source.line(w, image, row) + column) * w.in_channels + channel
        return ((image * w.in_channels + channel) * w.height + row) * w.width + column
