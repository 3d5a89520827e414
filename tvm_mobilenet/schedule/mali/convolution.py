"""Dense convolutions on a GPU, the stem among them: from NHWC or NCHW to NHWC.

A work-item computes a run of output columns by vectors of output channels. The weights lie as
(kernel height, kernel width, input channels, output channels), so that one vector of them meets one
input element of each column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import Expr, KernelWriter, broadcast, constant
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
from tvm_mobilenet.schedule.mali.product import Accumulate
from tvm_mobilenet.schedule.mali.tile_output import TileOutput
from tvm_mobilenet.schedule.mali.window import (
    column_tiles,
    inside_column,
    inside_row,
    taps_by_column,
    tile_place,
)
from tvm_mobilenet.schedule.workload import ConvWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = [
    "GpuConvPlan",
    "conv_cost",
    "conv_fault",
    "conv_items",
    "pack_conv",
    "plan_conv",
    "write_conv",
]

_MOST_COLUMNS = 8
_MOST_VECTORS = 4
_FEW_CHANNELS = 4
"""Input channels up to which they, and the taps of a row, are written out: an image's three."""


@dataclass(frozen=True, kw_only=True)
class GpuConvPlan:
    """How a dense convolution is computed on a GPU."""

    column_tile: int
    """Output columns of a work-item."""
    channel_vectors: int
    """Vectors of its output channels."""
    lanes: int
    """Elements of such a vector."""
    depth_lanes: int
    """Input channels that are loaded at once, where there are many."""
    group: tuple[int, int]
    """Work-items of a work-group, along output channels and pixels."""
    accumulate: Accumulate = "float32"
    """Element type of the sums."""

    @property
    def width(self) -> int:
        """Output channels of a work-item."""
        return self.channel_vectors * self.lanes


def conv_items(workload: ConvWorkload, plan: GpuConvPlan) -> tuple[int, int, int]:
    """Return the work-items along output channels and pixels, and for how many images."""
    pixels = workload.out_height * column_tiles(workload, plan.column_tile)
    return math.ceil(workload.out_channels / plan.width), pixels, workload.batch


def _has_few_channels(workload: ConvWorkload) -> bool:
    return workload.in_channels <= _FEW_CHANNELS or workload.input_layout == "NCHW"


def conv_cost(workload: ConvWorkload, plan: GpuConvPlan) -> ItemCost:
    """Return what one work-item does."""
    words = 0.5 if workload.dtype == "float16" else 1.0
    sum_words = 0.5 if plan.accumulate == "float16" else 1.0
    taps = math.prod(workload.kernel)
    if _has_few_channels(workload):
        pixels = workload.kernel[0] * len(taps_by_column(workload, plan.column_tile))
        x_loads, x_words = pixels * workload.in_channels, 1.0
    else:
        chunks = math.ceil(workload.in_channels / plan.depth_lanes)
        x_loads = taps * plan.column_tile * chunks
        x_words = plan.column_tile * plan.depth_lanes * words
    outputs = plan.column_tile * plan.channel_vectors
    return ItemCost(
        macs=plan.column_tile * plan.width * taps * workload.in_channels,
        own_loads=taps * workload.in_channels * plan.channel_vectors
        + outputs * (2 if workload.epilogue.residual else 1),
        shared_loads=x_loads,
        registers=ADDRESSING_REGISTERS
        + math.ceil(outputs * plan.lanes * sum_words + x_words + plan.width * words),
    )


@cache
def plan_conv(workload: ConvWorkload, gpu: Gpu, accumulate: Accumulate = "float32") -> GpuConvPlan:
    """Compute the plan from the register file, the threads that it leaves, and the load unit."""
    lanes = usable_lanes(workload.out_channels, gpu.lanes(workload.dtype))
    best: tuple[tuple[float, int], GpuConvPlan, ItemCost] | None = None
    for columns in range(1, min(_MOST_COLUMNS, workload.out_width) + 1):
        for vectors in range(1, min(_MOST_VECTORS, workload.out_channels // lanes) + 1):
            plan = GpuConvPlan(
                column_tile=columns,
                channel_vectors=vectors,
                lanes=lanes,
                depth_lanes=usable_lanes(workload.in_channels, gpu.lanes(workload.dtype)),
                group=(1, 1),
                accumulate=accumulate if workload.dtype == "float16" else "float32",
            )
            cost = conv_cost(workload, plan)
            items = math.prod(conv_items(workload, plan))
            cycles = estimated_cycles(items, cost, gpu, workload.dtype)
            key = (cycles, cost.registers)
            if cycles < math.inf and (best is None or key < best[0]):
                best = key, plan, cost
    if best is None:
        raise AssertionError(f"no tile fits {gpu.model}")
    _, plan, cost = best
    channels, pixels, _ = conv_items(workload, plan)
    return replace(plan, group=choose_group((channels, pixels), cost.registers, gpu))


def conv_fault(workload: ConvWorkload, plan: GpuConvPlan, gpu: Gpu) -> str | None:
    """Return why a plan cannot be used for a workload on a device, or None."""
    for name, value, most in (
        ("column_tile", plan.column_tile, workload.out_width),
        ("channel_vectors", plan.channel_vectors, workload.out_channels // max(1, plan.lanes)),
    ):
        if not 1 <= value <= most:
            return f"{name} {value} is not in 1 to {most}"
    if plan.lanes not in (1, 2, 4, 8, 16) or plan.depth_lanes not in (1, 2, 4, 8, 16):
        return f"vectors of {plan.lanes} and {plan.depth_lanes} are not OpenCL's"
    if plan.depth_lanes > workload.in_channels:
        return f"depth_lanes {plan.depth_lanes} is more than {workload.in_channels} channels"
    if plan.accumulate == "float16" and workload.dtype != "float16":
        return f"it sums {workload.dtype} in float16"
    return launch_fault(plan.group, conv_cost(workload, plan).registers, gpu)


def pack_conv(weights: np.ndarray, plan: GpuConvPlan) -> np.ndarray:
    """Return weights (O, I, kH, kW) as one flat array (kH, kW, I, O)."""
    del plan  # one layout serves every plan
    return np.ascontiguousarray(weights.transpose(2, 3, 1, 0)).reshape(-1)


def write_conv(workload: ConvWorkload, plan: GpuConvPlan) -> PrimFunc:
    """Write the kernel (x, w[, bias][, residual]) -> y NHWC, w as `pack_conv` gives."""
    w = workload
    x_shape = (w.batch, w.height, w.width, w.in_channels)
    if w.input_layout == "NCHW":
        x_shape = (w.batch, w.in_channels, w.height, w.width)
    y_shape = (w.batch, w.out_height, w.out_width, w.out_channels)
    elements = math.prod(w.kernel) * w.in_channels * w.out_channels
    arguments = [Argument("x", x_shape, w.dtype), Argument("w", (elements,), w.dtype)]
    arguments += TileOutput.of(w, plan).arguments(w.out_channels, y_shape)

    def body(kernel: KernelWriter) -> None:
        with grid(conv_items(w, plan), (*plan.group, 1)) as (panel, tile, image):
            channel = tile_start(panel, plan.width, w.out_channels)
            row, column = tile_place(w, tile, plan.column_tile)
            _Tile(kernel, w, plan).write(image, row, column, channel)

    return write_gpu_kernel(arguments, body)


class _Tile:
    """Writes one tile into a kernel."""

    def __init__(self, kernel: KernelWriter, workload: ConvWorkload, plan: GpuConvPlan) -> None:
        self._kernel = kernel
        self._w = workload
        self._plan = plan
        self._output = TileOutput.of(workload, plan)
        self._sums = GpuRegisters(
            plan.column_tile * plan.channel_vectors, plan.accumulate, plan.lanes
        )
        self._weights = GpuRegisters(plan.channel_vectors, workload.dtype, plan.lanes)

    def write(self, image: Expr, row: Expr, column: Expr, channel: Expr) -> None:
        """Write the tile whose first output is at that place."""
        plan, w = self._plan, self._w
        for vector in range(plan.channel_vectors):
            start = self._output.begin(self._kernel, channel + vector * plan.lanes)
            for c in range(plan.column_tile):
                self._sums[c * plan.channel_vectors + vector] = start
        with T.serial(0, w.kernel[0]) as ky, inside_row(w, row, ky) as in_row:
            if _has_few_channels(w):
                self._written_out(image, in_row, ky, column, channel)
            else:
                self._over_channels(image, in_row, ky, column, channel)
        first = (image * w.out_height + row) * w.out_width + column
        for c in range(plan.column_tile):
            for vector in range(plan.channel_vectors):
                index = (first + c) * w.out_channels + channel + vector * plan.lanes
                total = self._sums[c * plan.channel_vectors + vector]
                self._output.store(self._kernel, index, total)

    def _written_out(
        self, image: Expr, in_row: Expr, ky: Expr, column: Expr, channel: Expr
    ) -> None:
        """Accumulate one row of taps, channel by channel, each pixel loaded once."""
        w, plan = self._w, self._plan
        uses = taps_by_column(w, plan.column_tile)
        for ci in _few(w.in_channels):
            with ci as c_in:
                pixels = {offset: GpuRegisters(1, w.dtype, 1) for offset in uses}
                for offset, pixel in pixels.items():
                    pixel[0] = constant(0.0, w.dtype, 1)
                    with inside_column(w, column, offset, plan.column_tile) as in_column:
                        pixel[0] = self._kernel["x"].load(
                            self._x_index(image, in_row, in_column, c_in)
                        )
                for kx in range(w.kernel[1]):
                    self._load_weights(ky, kx, c_in, channel)
                    for c in range(plan.column_tile):
                        pixel = pixels[c * w.stride[1] + kx * w.dilation[1]]
                        self._accumulate(c, pixel[0])

    def _over_channels(
        self, image: Expr, in_row: Expr, ky: Expr, column: Expr, channel: Expr
    ) -> None:
        """Accumulate one row of taps, several input channels at a time."""
        w, plan = self._w, self._plan

        def steps(kx: Expr, c_in: Expr, lanes: int) -> None:
            pixels = GpuRegisters(plan.column_tile, w.dtype, lanes)
            for c in range(plan.column_tile):
                pixels[c] = constant(0.0, w.dtype, lanes)
                offset = c * w.stride[1] + kx * w.dilation[1]
                with inside_column(w, column, offset, plan.column_tile) as in_column:
                    index = self._x_index(image, in_row, in_column, c_in)
                    pixels[c] = self._kernel["x"].load(index, lanes)
            for lane in range(lanes):
                self._load_weights(ky, kx, c_in + lane, channel)
                for c in range(plan.column_tile):
                    self._accumulate(c, element(pixels[c], lane, lanes))

        with T.serial(0, w.kernel[1]) as kx:
            turns = w.in_channels // plan.depth_lanes
            with T.serial(0, turns) as turn:
                steps(kx, turn * plan.depth_lanes, plan.depth_lanes)
            c_in = turns * plan.depth_lanes
            while c_in < w.in_channels:
                lanes = usable_lanes(w.in_channels - c_in, plan.depth_lanes)
                steps(kx, c_in, lanes)
                c_in += lanes

    def _x_index(self, image: Expr, row: Expr, column: Expr, channel: Expr) -> Expr:
        w = self._w
        if w.input_layout == "NCHW":
            return ((image * w.in_channels + channel) * w.height + row) * w.width + column
        return ((image * w.height + row) * w.width + column) * w.in_channels + channel

    def _load_weights(self, ky: Expr, kx: Expr, c_in: Expr, channel: Expr) -> None:
        w, plan = self._w, self._plan
        base = ((ky * w.kernel[1] + kx) * w.in_channels + c_in) * w.out_channels + channel
        for vector in range(plan.channel_vectors):
            self._weights[vector] = self._kernel["w"].load(base + vector * plan.lanes, plan.lanes)

    def _accumulate(self, c: int, value: Expr) -> None:
        w, plan = self._w, self._plan
        value = broadcast(cast(value, plan.accumulate, w.dtype, 1), plan.lanes)
        for vector in range(plan.channel_vectors):
            index = c * plan.channel_vectors + vector
            self._sums[index] = self._sums[index] + value * cast(
                self._weights[vector], plan.accumulate, w.dtype, plan.lanes
            )


@contextmanager
def _just(value: int) -> Iterator[int]:
    yield value


def _few(channels: int) -> list[Any]:
    """Return contexts that yield each channel: written out if few, one loop if many."""
    if channels <= _FEW_CHANNELS:
        return [_just(c) for c in range(channels)]
    return [T.serial(0, channels)]
