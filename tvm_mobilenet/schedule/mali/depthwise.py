"""Depthwise convolutions on a GPU over NHWC.

A work-item computes a run of neighbouring columns of one vector of channels: they share their input
pixels and the taps of a row, which are loaded once. Neighbouring work-items have neighbouring
vectors of channels. The weights lie tap by tap, (kernel height * kernel width, channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvm_mobilenet._tvm import PrimFunc
from tvm_mobilenet.schedule.emit import Expr, KernelWriter
from tvm_mobilenet.schedule.mali.emit import (
    Argument,
    GpuRegisters,
    cast,
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
    "GpuDepthwisePlan",
    "depthwise_cost",
    "depthwise_fault",
    "depthwise_items",
    "pack_depthwise",
    "plan_depthwise",
    "write_depthwise",
]

_MOST_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class GpuDepthwisePlan:
    """How a depthwise convolution is computed on a GPU."""

    column_tile: int
    """Output columns of a work-item."""
    lanes: int
    """Its channels, one vector."""
    group: tuple[int, int]
    """Work-items of a work-group, along x and y."""
    order: Literal["channels", "pixels"]
    """What neighbouring work-items (along x) are apart in."""
    accumulate: Accumulate = "float32"
    """Element type of the sums."""


def depthwise_items(workload: ConvWorkload, plan: GpuDepthwisePlan) -> tuple[int, int, int]:
    """Return the work-items along channels and pixels, and for how many images."""
    pixels = workload.out_height * column_tiles(workload, plan.column_tile)
    return math.ceil(workload.in_channels / plan.lanes), pixels, workload.batch


def depthwise_cost(workload: ConvWorkload, plan: GpuDepthwisePlan) -> ItemCost:
    """Return what one work-item does."""
    words = 0.5 if workload.dtype == "float16" else 1.0
    sum_words = 0.5 if plan.accumulate == "float16" else 1.0
    pixels = workload.kernel[0] * len(taps_by_column(workload, plan.column_tile))
    taps = math.prod(workload.kernel)
    stores = plan.column_tile * (2 if workload.epilogue.residual else 1)
    is_along_channels = plan.order == "channels"
    return ItemCost(
        macs=plan.column_tile * taps * plan.lanes,
        own_loads=pixels + stores + (taps if is_along_channels else 0),
        shared_loads=0 if is_along_channels else taps,
        registers=ADDRESSING_REGISTERS
        + math.ceil(plan.lanes * (plan.column_tile * sum_words + (workload.kernel[1] + 1) * words)),
    )


@cache
def plan_depthwise(
    workload: ConvWorkload, gpu: Gpu, accumulate: Accumulate = "float32"
) -> GpuDepthwisePlan:
    """Compute the plan: as many columns as share their pixels and leave the core full enough."""
    lanes = usable_lanes(workload.in_channels, gpu.lanes(workload.dtype))
    best: tuple[tuple[float, int], GpuDepthwisePlan, ItemCost] | None = None
    while best is None:
        for columns in range(1, min(_MOST_COLUMNS, workload.out_width) + 1):
            plan = GpuDepthwisePlan(
                column_tile=columns,
                lanes=lanes,
                group=(1, 1),
                order="channels",
                accumulate=accumulate if workload.dtype == "float16" else "float32",
            )
            cost = depthwise_cost(workload, plan)
            items = math.prod(depthwise_items(workload, plan))
            cycles = estimated_cycles(items, cost, gpu, workload.dtype)
            key = (cycles, cost.registers)
            if cycles < math.inf and (best is None or key < best[0]):
                best = key, plan, cost
        if best is None and lanes == 1:
            raise AssertionError(f"no tile fits {gpu.model}")
        lanes = max(1, lanes // 2)
    _, plan, cost = best
    channels, pixels, _ = depthwise_items(workload, plan)
    return replace(plan, group=choose_group((channels, pixels), cost.registers, gpu))


def depthwise_fault(workload: ConvWorkload, plan: GpuDepthwisePlan, gpu: Gpu) -> str | None:
    """Return why a plan cannot be used for a workload on a device, or None."""
    if not 1 <= plan.column_tile <= workload.out_width:
        return f"column_tile {plan.column_tile} is not in 1 to {workload.out_width}"
    if plan.lanes not in (1, 2, 4, 8, 16) or plan.lanes > workload.in_channels:
        return f"vectors of {plan.lanes} do not fit {workload.in_channels} channels"
    if plan.accumulate == "float16" and workload.dtype != "float16":
        return f"it sums {workload.dtype} in float16"
    return launch_fault(plan.group, depthwise_cost(workload, plan).registers, gpu)


def pack_depthwise(weights: np.ndarray, plan: GpuDepthwisePlan) -> np.ndarray:
    """Return weights (channels, 1, kH, kW) as one flat array (kH * kW, channels)."""
    del plan  # one layout serves every plan
    return np.ascontiguousarray(weights.reshape(weights.shape[0], -1).T).reshape(-1)


def write_depthwise(workload: ConvWorkload, plan: GpuDepthwisePlan) -> PrimFunc:
    """Write the kernel (x NHWC, w[, bias][, residual]) -> y NHWC, w as `pack_depthwise` gives."""
    w = workload
    y_shape = (w.batch, w.out_height, w.out_width, w.out_channels)
    arguments = [
        Argument("x", (w.batch, w.height, w.width, w.in_channels), w.dtype),
        Argument("w", (math.prod(w.kernel) * w.in_channels,), w.dtype),
    ]
    arguments += TileOutput.of(w, plan).arguments(w.out_channels, y_shape)

    def body(kernel: KernelWriter) -> None:
        channels, pixels, images = depthwise_items(w, plan)
        is_swapped = plan.order == "pixels"
        items = (pixels, channels) if is_swapped else (channels, pixels)
        with grid((*items, images), (*plan.group, 1)) as (x_index, y_index, image):
            vector, tile = (y_index, x_index) if is_swapped else (x_index, y_index)
            channel = tile_start(vector, plan.lanes, w.in_channels)
            row, column = tile_place(w, tile, plan.column_tile)
            _write_tile(kernel, w, plan, (image, row, column, channel))

    return write_gpu_kernel(arguments, body)


def _write_tile(
    kernel: KernelWriter,
    w: ConvWorkload,
    plan: GpuDepthwisePlan,
    at: tuple[Expr, Expr, Expr, Expr],
) -> None:
    image, row, column, channel = at
    lanes, columns, accumulate = plan.lanes, plan.column_tile, plan.accumulate
    output = TileOutput.of(w, plan)
    sums = GpuRegisters(columns, accumulate, lanes)
    start = output.begin(kernel, channel)
    for c in range(columns):
        sums[c] = start
    taps = GpuRegisters(w.kernel[1], w.dtype, lanes)
    pixel = GpuRegisters(1, w.dtype, lanes)
    for ky in range(w.kernel[0]):
        with inside_row(w, row, ky) as in_row:
            line = (image * w.height + in_row) * w.width
            for kx in range(w.kernel[1]):
                tap = (ky * w.kernel[1] + kx) * w.in_channels
                taps[kx] = kernel["w"].load(tap + channel, lanes)
            for offset, uses in taps_by_column(w, columns).items():
                with inside_column(w, column, offset, columns) as in_column:
                    pixel[0] = kernel["x"].load((line + in_column) * w.in_channels + channel, lanes)
                    for c, kx in uses:
                        sums[c] = sums[c] + cast(pixel[0], accumulate, w.dtype, lanes) * cast(
                            taps[kx], accumulate, w.dtype, lanes
                        )
    first = (image * w.out_height + row) * w.out_width + column
    for c in range(columns):
        index = (first + c) * w.out_channels + channel
        output.store(kernel, index, sums[c])
