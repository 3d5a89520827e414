"""Convolutions of an NCHW image on processors that multiply by a lane.

The columns that a tile of output pixels needs lie side by side in the image. They are loaded as a
few vectors, and each tap multiplies by the lane that its column fell into: four columns cost one
load where a broadcast needs one each.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Registers,
    apply_epilogue,
    by_lane,
    constant,
    when,
)
from tvm_mobilenet.schedule.register_tile import Panel, column_panels
from tvm_mobilenet.schedule.window import WidthTile, width_tiles
from tvm_mobilenet.schedule.workload import ConvWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["LaneConvWriter", "can_use_lanes", "choose_lane_tile", "lane_tile_fault"]

_EPILOGUE_INSTRUCTIONS = 3.8
_TILE_INSTRUCTIONS = 20
"""Bias, addresses and the loops around a tile; seen in the object code."""


def can_use_lanes(workload: ConvWorkload, cpu: Cpu) -> bool:
    """Tell whether the image's columns lie side by side and the processor multiplies by lane."""
    return (
        cpu.fma == "by-lane"
        and workload.input_layout == "NCHW"
        and workload.width >= 2 * cpu.lanes(workload.dtype)
        and workload.kernel[0] * workload.kernel[1] * workload.in_channels <= 64
    )


def _input_columns(workload: ConvWorkload, columns: int) -> int:
    span = (workload.kernel[1] - 1) * workload.dilation[1] + 1
    return (columns - 1) * workload.stride[1] + span


def lane_tile_fault(workload: ConvWorkload, cpu: Cpu, columns: int, vectors: int) -> str | None:
    """Return why a tile of output columns x vectors cannot be used, or None."""
    if not 1 <= columns <= workload.out_width or vectors < 1:
        return f"a tile of {columns} columns x {vectors} vectors does not fit the output"
    lanes = cpu.lanes(workload.dtype)
    loads = math.ceil(_input_columns(workload, columns) / lanes)
    needed = columns * vectors + loads + vectors + 1
    if needed > cpu.vector_registers:
        return f"the tile needs {needed} registers, there are {cpu.vector_registers}"
    for tile in width_tiles(workload, columns):
        inside = _columns_inside(workload, tile)
        if not inside or inside[-1] - inside[0] + 1 < lanes:
            return f"column_tile {columns} reads less than {lanes} columns of the image at once"
    return None


def choose_lane_tile(workload: ConvWorkload, cpu: Cpu) -> tuple[int, int]:
    """Return columns and vectors of channels of the tile with the fewest instructions."""
    w = workload
    lines = w.kernel[0] * w.in_channels
    best: tuple[float, int, int] | None = None
    for vectors in range(1, 9):
        panels = column_panels(w.out_channels, cpu.lanes(w.dtype), vectors)
        for columns in range(1, min(w.out_width, 24) + 1):
            loads = -(-_input_columns(w, columns) // cpu.lanes(w.dtype))
            if lane_tile_fault(w, cpu, columns, vectors) is not None:
                continue
            cost = 0.0
            for panel in panels:
                count = len(panel.vectors)
                tap = columns * count + count / 2
                cost += lines * (loads + w.kernel[1] * tap)
                cost += _EPILOGUE_INSTRUCTIONS * columns * count + _TILE_INSTRUCTIONS
            cost *= -(-w.out_width // columns)
            if best is None or cost < best[0]:
                best = (cost, columns, vectors)
    if best is None:
        raise AssertionError(f"no tile of {workload} fits {cpu}")
    return best[1], best[2]


def _columns_inside(workload: ConvWorkload, tile: WidthTile) -> list[int]:
    """Return the input columns on the image that a tile reads, counted from its first."""
    w = workload
    return sorted(
        {
            c * w.stride[1] + kx * w.dilation[1]
            for c in range(tile.columns)
            for kx in range(w.kernel[1])
            if tile.is_inside(w, c, kx)
        }
    )


class LaneConvWriter:
    """Writes register tiles of one convolution into a kernel."""

    def __init__(self, kernel: KernelWriter, workload: ConvWorkload, lanes: int) -> None:
        self._kernel = kernel
        self._lanes = lanes
        self._workload = workload

    def tile(
        self, tile: WidthTile, image: Expr, row: Expr, column: Expr, panel: Panel, start: Expr
    ) -> None:
        """Write `tile.columns` output pixels of one row for the channels of one panel."""
        w = self._workload
        first = row * w.stride[0] - w.padding[0]
        span = (w.kernel[0] - 1) * w.dilation[0]
        conditions = []
        if w.padding[0] > 0:
            conditions.append(first >= 0)
        if (w.out_height - 1) * w.stride[0] - w.padding[0] + span >= w.height:
            conditions.append(first + span < w.height)
        write = partial(self._guarded, tile, image, row, column, panel, start)
        if not conditions:
            write(is_guarded=False)
            return
        with T.If(conditions[0] if len(conditions) == 1 else tirx.all(*conditions)):
            with T.Then():
                write(is_guarded=False)
            with T.Else():
                write(is_guarded=True)

    def _guarded(
        self,
        tile: WidthTile,
        image: Expr,
        row: Expr,
        column: Expr,
        panel: Panel,
        start: Expr,
        *,
        is_guarded: bool,
    ) -> None:
        w = self._workload
        bias, residual = self._kernel.get("bias"), self._kernel.get("residual")
        accumulators = [Registers(tile.columns, w.dtype, lanes) for _, lanes in panel.vectors]
        for vector, (offset, lanes) in enumerate(panel.vectors):
            value = bias.load(start + offset, lanes) if bias else constant(0.0, w.dtype, lanes)
            for c in range(tile.columns):
                accumulators[vector][c] = value
        inside = _columns_inside(w, tile)
        skipped = min(inside)
        in_column = column * w.stride[1] - w.padding[1] + skipped
        first_row = row * w.stride[0] - w.padding[0]
        corner = None
        if not is_guarded:
            line = image * (w.in_channels * w.height) + first_row
            corner = self._kernel["x"].at(line * w.width + in_column)
        # A loop over the input channels, though they are few: written out, LLVM would load all
        # weights before the loop over the tiles, and spill them.
        with T.serial(0, w.in_channels) as channel:
            for ky in range(w.kernel[0]):
                in_row = first_row + ky * w.dilation[0]
                with when(tirx.all(in_row >= 0, in_row < w.height) if is_guarded else None):
                    if corner is not None:
                        at = (channel * w.height + ky * w.dilation[0]) * w.width
                        line_at: tuple[Memory, Expr] = (corner, at)
                    else:
                        line = (image * w.in_channels + channel) * w.height + in_row
                        line_at = (self._kernel["x"], line * w.width + in_column)
                    self._line(tile, inside, line_at, ky, channel, panel, start, accumulators)
        for c in range(tile.columns):
            for vector, (offset, lanes) in enumerate(panel.vectors):
                pixel = (image * w.out_height + row) * w.out_width + column + c
                index = pixel * w.out_channels + start + offset
                value = apply_epilogue(
                    accumulators[vector][c],
                    w.epilogue,
                    lanes,
                    w.dtype,
                    residual=residual.load(index, lanes) if residual else None,
                )
                self._kernel["y"].store(index, value, lanes)

    def _line(
        self,
        tile: WidthTile,
        inside: list[int],
        line_at: tuple[Memory, Expr],
        ky: int,
        channel: Expr,
        panel: Panel,
        start: Expr,
        accumulators: list[Registers],
    ) -> None:
        """Accumulate the taps of one line of one input channel."""
        w = self._workload
        line, at = line_at
        skipped, count = inside[0], inside[-1] - inside[0] + 1
        # The last vector is moved back, so that nothing beyond the last column is read.
        starts = [min(s, count - self._lanes) for s in range(0, count, self._lanes)]
        loaded = Registers(len(starts), w.dtype, self._lanes)
        for i, first in enumerate(starts):
            loaded[i] = line.load(at + first, self._lanes)
        taps = w.kernel[0] * w.kernel[1]
        for kx in range(w.kernel[1]):
            depth = channel * taps + ky * w.kernel[1] + kx
            weights_at = start * (taps * w.in_channels) + depth * panel.width
            for vector, (offset, lanes) in enumerate(panel.vectors):
                weights = self._kernel["w"].load(weights_at + offset, lanes)
                for c in range(tile.columns):
                    if not tile.is_inside(w, c, kx):
                        continue
                    column = c * w.stride[1] + kx * w.dilation[1] - skipped
                    i = min(column // self._lanes, len(starts) - 1)
                    value = by_lane(loaded[i], column - starts[i], lanes)
                    accumulators[vector][c] = accumulators[vector][c] + value * weights
