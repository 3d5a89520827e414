"""Several convolutions as one kernel, row by row, so that what lies between stays in the cache.

The first layers of a MobileNet write tensors larger than a core's L2 cache: one core of Cascade
Lake spends more time on moving 112x112x64 out of it and in again than on computing it. Here a task
computes a block of rows of the last convolution, one after the other. Before each it has every
stage compute the rows that its window newly covers, into a ring of as many rows as the next stage's
window is high. Only where a task begins are rows computed that its neighbour computes too.

The same idea on GPUs and accelerators is fused-layer convolution (Alwani et al. 2016, MICRO 49,
section 3); the ring is its "reuse" variant, in software.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.schedule.convolution import ConvPlan, ConvWriter, pack_conv, plan_conv
from tvm_mobilenet.schedule.depthwise import (
    DepthwisePlan,
    DepthwiseWriter,
    pack_depthwise,
    plan_depthwise_rows,
)
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    overlapping_start,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.matmul import MatmulPlan, MatmulWriter, pack_matmul, plan_matmul
from tvm_mobilenet.schedule.register_tile import Panel, RegisterTile
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.window import RowSource, each_width_tile, width_tiles
from tvm_mobilenet.schedule.workload import CascadeWorkload, ConvWorkload, MatmulWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "CascadePlan",
    "can_follow",
    "pack_cascade",
    "plan_cascade",
    "row_product",
    "write_cascade",
]


@dataclass(frozen=True, kw_only=True)
class CascadePlan:
    """How a cascade is computed; `tuning/spaces/` says what a search may change."""

    row_block: int
    """Output rows of one task; tasks are cut among the threads."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    lanes: int
    """Elements of a full vector."""
    tiles: tuple[RegisterTile, ...]
    """Pixels of a row x vectors of channels, for each stage."""


def can_follow(first: ConvWorkload, second: ConvWorkload) -> bool:
    """Tell whether `second` can take its rows from a ring that `first` fills."""
    return (
        second.input_layout == "NHWC"
        and second.dilation == (1, 1)
        and second.kernel[0] >= second.stride[0]
        and (second.height, second.width) == (first.out_height, first.out_width)
        and second.in_channels == first.out_channels
        and not first.epilogue.residual
    )


def plan_cascade(workload: CascadeWorkload, cpu: Cpu) -> CascadePlan:
    """Compute the plan: tiles as each stage has for one row, a block of rows for each core."""
    last = workload.stages[-1]
    is_parallel = pays_to_parallelize(workload, cpu)
    cores = cpu.cores if is_parallel else 1
    return CascadePlan(
        row_block=math.ceil(last.out_height / math.ceil(cores / last.batch)),
        is_parallel=is_parallel,
        lanes=cpu.lanes(workload.dtype),
        tiles=tuple(_tile(stage, cpu) for stage in workload.stages),
    )


def row_product(stage: ConvWorkload) -> MatmulWorkload:
    """Return one row of a pointwise stage as the matrix product that it is."""
    return MatmulWorkload(
        rows=stage.width,
        depth=stage.in_channels,
        columns=stage.out_channels,
        epilogue=stage.epilogue,
        dtype=stage.dtype,
    )


def _tile(stage: ConvWorkload, cpu: Cpu) -> RegisterTile:
    if stage.is_depthwise:
        depthwise = plan_depthwise_rows(stage, cpu)
        return RegisterTile(depthwise.column_tile, depthwise.channel_vectors)
    if stage.is_pointwise:
        product = plan_matmul(row_product(stage), cpu)
        return RegisterTile(product.row_tile, product.column_vectors)
    conv = plan_conv(stage, cpu)
    return RegisterTile(conv.column_tile, conv.channel_vectors)


def _stage_plan(
    stage: ConvWorkload, tile: RegisterTile, lanes: int
) -> ConvPlan | DepthwisePlan | MatmulPlan:
    """Return a stage's plan for one row, without threads of its own."""
    if stage.is_depthwise:
        return DepthwisePlan(
            column_tile=tile.rows,
            channel_vectors=tile.vectors,
            lanes=lanes,
            row_block=1,
            channel_block=0,
            is_parallel=False,
        )
    if stage.is_pointwise:
        return MatmulPlan(
            row_tile=tile.rows,
            column_vectors=tile.vectors,
            lanes=lanes,
            by_lane=False,
            # A panel of weights stays in the L1 cache while the row passes.
            outer="columns",
            is_parallel=False,
        )
    return ConvPlan(
        column_tile=tile.rows, channel_vectors=tile.vectors, lanes=lanes, is_parallel=False
    )


def pack_cascade(
    weights: Sequence[np.ndarray], workload: CascadeWorkload, plan: CascadePlan
) -> list[np.ndarray]:
    """Return the weights (O, I/g, kH, kW) of each stage as its kernel reads them."""
    packed = []
    for stage, tile, array in zip(workload.stages, plan.tiles, weights, strict=True):
        own = _stage_plan(stage, tile, plan.lanes)
        if isinstance(own, DepthwisePlan):
            packed.append(pack_depthwise(array, own))
        elif isinstance(own, MatmulPlan):
            packed.append(pack_matmul(array.reshape(array.shape[0], -1).T, own))
        else:
            packed.append(pack_conv(array, own))
    return packed


def write_cascade(workload: CascadeWorkload, plan: CascadePlan) -> PrimFunc:
    """Write the kernel (x, w0[, bias0], w1[, bias1], ...[, residual]) -> y NHWC.

    `x` is in the first stage's layout, weights are as `pack_cascade` lays them out.
    """
    first, last = workload.stages[0], workload.stages[-1]
    x_shape = (
        (first.batch, first.height, first.width, first.in_channels)
        if first.input_layout == "NHWC"
        else (first.batch, first.in_channels, first.height, first.width)
    )
    y_shape = (last.batch, last.out_height, last.out_width, last.out_channels)
    parameters = [Parameter("x", x_shape)]
    for index, stage in enumerate(workload.stages):
        parameters.append(Parameter(f"w{index}", (stage.weight_bytes // 4,)))
        if stage.epilogue.bias:
            parameters.append(Parameter(f"bias{index}", (stage.out_channels,)))
    if last.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        blocks = math.ceil(last.out_height / plan.row_block)
        with task_loop(last.batch * blocks, plan.is_parallel) as task:
            image = task // blocks if last.batch > 1 else 0
            block = task % blocks if last.batch > 1 else task
            begin = overlapping_start(block, plan.row_block, last.out_height)
            writer = _CascadeWriter(kernel, workload, plan, image, begin)
            with T.serial(0, plan.row_block) as r:
                writer.row(len(workload.stages) - 1, _number(begin + r))

    return write_kernel(workload.dtype, parameters, body)


def _number(value: Expr) -> Expr:
    """Return an integer that is computed once.

    TVM puts a bound expression back where it is used: the row of a stage, in that of the stage
    before, would grow three times with each. A register it leaves alone.
    """
    register = Registers(1, "int32", 1)
    register[0] = value
    return register[0]


class _CascadeWriter:
    """Writes the rows of one task, which begin at `begin` of the last stage."""

    def __init__(
        self,
        kernel: KernelWriter,
        workload: CascadeWorkload,
        plan: CascadePlan,
        image: Expr,
        begin: Expr,
    ) -> None:
        self._stages = workload.stages
        self._image = image
        # The first row that the task computes of each stage.
        self._begins: list[Expr] = [_number(begin)]
        for stage in reversed(self._stages[1:]):
            row = self._begins[0] * stage.stride[0] - stage.padding[0]
            self._begins.insert(0, _number(T.max(row, 0) if stage.padding[0] else row))
        sources = [RowSource(kernel["x"])]
        outputs: list[Memory] = []
        for stage, reader in itertools.pairwise(self._stages):
            ring = kernel.scratch(reader.kernel[0] * stage.out_width * stage.out_channels)
            outputs.append(ring)
            sources.append(RowSource(ring, reader.kernel[0]))
        outputs.append(kernel["y"])
        self._writers = [
            self._writer(kernel, index, plan, source, y)
            for index, (source, y) in enumerate(zip(sources, outputs, strict=True))
        ]

    def row(self, index: int, row: Expr) -> None:
        """Write row `row` of stage `index`, and before it what it reads and is not there yet."""
        stage = self._stages[index]
        if index > 0:
            offset = stage.kernel[0] - stage.padding[0]
            if (stage.kernel[0], stage.stride[0]) == (1, 1):
                self.row(index - 1, row)
            else:
                end = T.min(row * stage.stride[0] + offset, stage.height)
                done = T.min((row - 1) * stage.stride[0] + offset, stage.height)
                is_first = tirx.EQ(row, self._begins[index])
                start = _number(tirx.Select(is_first, self._begins[index - 1], done))
                with T.serial(0, end - start) as new:
                    self.row(index - 1, _number(start + new))
        last = index == len(self._stages) - 1
        slots = 0 if last else self._stages[index + 1].kernel[0]
        if last:
            y_pixel = (self._image * stage.out_height + row) * stage.out_width
        else:
            y_pixel = (row % slots if slots > 1 else 0) * stage.out_width
        self._writers[index](row, y_pixel)

    def _writer(
        self, kernel: KernelWriter, index: int, plan: CascadePlan, source: RowSource, y: Memory
    ) -> Callable[[Expr, Expr], None]:
        """Return what writes a row of a stage to the pixels from a given one on."""
        stage = self._stages[index]
        own = _stage_plan(stage, plan.tiles[index], plan.lanes)
        weights, bias = f"w{index}", f"bias{index}"
        image = self._image
        if isinstance(own, MatmulPlan):
            product = MatmulWriter(kernel, row_product(stage), own, y=y, weights=weights, bias=bias)

            def multiply(row: Expr, y_pixel: Expr) -> None:
                product.block(source.memory, y_pixel, source.line(stage, image, row))

            return multiply
        panels = own.panels(stage.out_channels)
        full = [panel for panel in panels if panel.vectors == panels[0].vectors]

        def each_panel(write: Callable[[Panel, Expr], None]) -> None:
            with T.serial(0, len(full)) as number:
                write(full[0], number * full[0].width)
            for panel in panels[len(full) :]:
                write(panel, panel.start)

        if isinstance(own, DepthwisePlan):
            depthwise = DepthwiseWriter(
                kernel, stage, own, source=source, weights=weights, bias=bias
            )

            def filter_row(row: Expr, y_pixel: Expr) -> None:
                each_panel(
                    lambda panel, channel: depthwise.row(image, row, y, y_pixel, panel, channel)
                )

            return filter_row
        conv = ConvWriter(kernel, stage, source=source, y=y, weights=weights, bias=bias)
        tiles = width_tiles(stage, own.column_tile)

        def convolve(row: Expr, y_pixel: Expr) -> None:
            def panel_row(panel: Panel, start: Expr) -> None:
                for tile in tiles:
                    with each_width_tile(tile) as column:
                        conv.tile(tile, image, row, column, panel, start, y_pixel)

            each_panel(panel_row)

        return convolve
