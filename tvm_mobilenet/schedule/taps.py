"""Dense convolutions of stride 1 tap by tap: each tap is a matrix product over shifted pixels.

For atrous convolutions, and for those whose weights exceed the cache. A panel of output channels is
taken through all taps before the next; the weights of one tap stay in the cache while the image
passes, and no tile has a border, for a tap's product covers exactly the pixels that it has on the
image. The sums wait in the output. The middle tap, which has them all, comes last and stores the
finished values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Parameter,
    constant,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.matmul import MatmulPlan, MatmulWriter
from tvm_mobilenet.schedule.register_tile import (
    Panel,
    column_panels,
    conflict_free_rows,
    register_tiles,
    tile_cycles,
)
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload, TapsWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["TapsPlan", "is_by_taps", "pack_taps", "plan_taps", "write_taps"]


@dataclass(frozen=True, kw_only=True)
class TapsPlan:
    """How a convolution is computed tap by tap."""

    row_block: int
    """Rows of the output of one task."""
    product: MatmulPlan
    """Of one tap; its rows are neighbouring pixels of one row."""


@dataclass(frozen=True)
class _Tap:
    """One tap, and the output pixels that have it on the image."""

    row: int
    column: int
    top: int
    bottom: int
    left: int
    right: int


def _taps(w: ConvWorkload) -> list[_Tap]:
    """List the taps that some pixel has on the image; the one that all have is the last."""
    found = []
    for ky in range(w.kernel[0]):
        for kx in range(w.kernel[1]):
            down, right = ky * w.dilation[0] - w.padding[0], kx * w.dilation[1] - w.padding[1]
            tap = _Tap(
                ky,
                kx,
                max(0, -down),
                min(w.out_height, w.height - down),
                max(0, -right),
                min(w.out_width, w.width - right),
            )
            if tap.top < tap.bottom and tap.left < tap.right:
                found.append(tap)
    return sorted(found, key=lambda tap: _covers_all(w, tap))


def _covers_all(w: ConvWorkload, tap: _Tap) -> bool:
    return (tap.top, tap.left, tap.bottom, tap.right) == (0, 0, w.out_height, w.out_width)


def is_by_taps(workload: ConvWorkload, cpu: Cpu) -> bool:
    """Tell whether a convolution can be computed tap by tap, and should be."""
    w = workload
    if w.groups != 1 or w.stride != (1, 1) or w.input_layout != "NHWC" or w.kernel == (1, 1):
        return False
    if not _covers_all(w, _taps(w)[-1]):
        return False
    weight_bytes = math.prod(w.kernel) * w.in_channels * w.out_channels * 4
    return max(w.dilation) > 1 or weight_bytes > cpu.l2_kib * 1024 // 2


def plan_taps(workload: TapsWorkload, cpu: Cpu) -> TapsPlan:
    """Compute the plan: the register tile that takes all taps' rows of pixels in fewest cycles."""
    w = workload.conv
    lanes = cpu.lanes(w.dtype)
    most = conflict_free_rows(w.in_channels * 4, cpu)
    widths = [(tap.bottom - tap.top, tap.right - tap.left) for tap in _taps(w)]
    best: tuple[float, int, int] | None = None
    for tile in register_tiles(cpu):
        if tile.rows > min(w.out_width, most):
            continue
        cycles = 0.0
        for panel in column_panels(w.out_channels, lanes, tile.vectors):
            for height, width in widths:
                for rows in _cut(width, tile.rows):
                    cycles += height * tile_cycles(rows, len(panel.vectors), w.in_channels, cpu)
        if best is None or cycles < best[0]:
            best = (cycles, tile.rows, tile.vectors)
    assert best is not None
    is_parallel = pays_to_parallelize(workload, cpu)
    panels = len(column_panels(w.out_channels, lanes, best[2]))
    # Panels are tasks; where there are too few of them the image is cut as well.
    cuts = max(1, math.ceil(2 * cpu.cores / panels)) if is_parallel else 1
    if panels % cpu.cores == 0:
        cuts = 1
    return TapsPlan(
        row_block=math.ceil(w.out_height / cuts),
        product=MatmulPlan(
            row_tile=best[1],
            column_vectors=best[2],
            lanes=lanes,
            by_lane=cpu.fma == "by-lane",
            outer="columns",
            is_parallel=is_parallel,
        ),
    )


def _cut(pixels: int, tile: int) -> list[int]:
    return [tile] * (pixels // tile) + [pixels % tile] * (pixels % tile > 0)


def pack_taps(weights: np.ndarray, plan: TapsPlan) -> np.ndarray:
    """Return weights (O, I, kH, kW) as one flat array, panel by panel, each (kH, kW, I, width)."""
    by_tap = weights.transpose(2, 3, 1, 0)
    panels = plan.product.panels(weights.shape[0])
    return np.concatenate(
        [by_tap[..., p.start : p.start + p.width].reshape(-1) for p in panels], dtype=weights.dtype
    )


def write_taps(workload: TapsWorkload, plan: TapsPlan) -> PrimFunc:
    """Write the kernel (x NHWC, w[, bias][, residual]) -> y NHWC, w as `pack_taps` gives."""
    w = workload.conv
    y_shape = (w.batch, w.out_height, w.out_width, w.out_channels)
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.in_channels)),
        Parameter("w", (math.prod(w.kernel) * w.in_channels * w.out_channels,)),
    ]
    if w.epilogue.bias:
        parameters.append(Parameter("bias", (w.out_channels,)))
    if w.epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        panels = plan.product.panels(w.out_channels)
        full = [panel for panel in panels if panel.vectors == panels[0].vectors]
        blocks = math.ceil(w.out_height / plan.row_block)
        writer = _TapsWriter(kernel, w, plan)
        with task_loop(w.batch * blocks * len(panels), plan.product.is_parallel) as task:
            image_block = task // len(panels)
            index = task % len(panels)
            image = image_block // blocks if w.batch > 1 else 0
            block = image_block % blocks if w.batch > 1 else image_block
            if len(full) == len(panels):
                writer.panel(full[0], index * full[0].width, image, block)
                return
            with T.If(index < len(full)):
                with T.Then():
                    writer.panel(full[0], index * full[0].width, image, block)
                with T.Else():
                    for panel in panels[len(full) :]:
                        writer.panel(panel, panel.start, image, block)

    return write_kernel(w.dtype, parameters, body)


class _TapsWriter:
    """Writes one panel of output channels, all its taps."""

    def __init__(self, kernel: KernelWriter, workload: ConvWorkload, plan: TapsPlan) -> None:
        self._kernel = kernel
        self._w = workload
        self._plan = plan
        product = MatmulWorkload(
            rows=workload.out_width,
            depth=workload.in_channels,
            columns=workload.out_channels,
            epilogue=workload.epilogue,
            dtype=workload.dtype,
        )
        self._writer = MatmulWriter(kernel, product, plan.product)

    def panel(self, panel: Panel, start: Expr, image: Expr, block: Expr) -> None:
        """Write the block's rows of a panel."""
        w, taps = self._w, _taps(self._w)
        first = block * self._plan.row_block
        last = T.min(first + self._plan.row_block, w.out_height)
        if len(taps) > 1:
            self._begin(panel, start, image, first, last)
        for tap in taps:
            self._tap(tap, panel, start, image, (first, last), is_last=tap is taps[-1])

    def _begin(self, panel: Panel, start: Expr, image: Expr, first: Expr, last: Expr) -> None:
        """Put the bias where the sums begin."""
        w, y, bias = self._w, self._kernel["y"], self._kernel.get("bias")
        from_row, to_row = first * w.out_width, last * w.out_width
        with T.serial(0, to_row - from_row) as index:
            pixel = image * w.out_height * w.out_width + from_row + index
            for offset, lanes in panel.vectors:
                value = bias.load(start + offset, lanes) if bias else constant(0.0, w.dtype, lanes)
                y.store(pixel * w.out_channels + start + offset, value, lanes)

    def _tap(
        self,
        tap: _Tap,
        panel: Panel,
        start: Expr,
        image: Expr,
        rows: tuple[Expr, Expr],
        *,
        is_last: bool,
    ) -> None:
        w = self._w
        top, bottom = T.max(rows[0], tap.top), T.min(rows[1], tap.bottom)
        down = tap.row * w.dilation[0] - w.padding[0]
        right = tap.column * w.dilation[1] - w.padding[1]
        depth = w.in_channels
        weights_at = start * (math.prod(w.kernel) * depth) + (
            (tap.row * w.kernel[1] + tap.column) * depth * panel.width
        )
        epilogue = replace(w.epilogue, bias=False) if is_last else Epilogue()
        tile = self._plan.product.row_tile
        full, rest = divmod(tap.right - tap.left, tile)
        with T.serial(0, T.max(bottom - top, 0)) as index:
            row = top + index
            y_line = (image * w.out_height + row) * w.out_width
            x_line = (image * w.height + row + down) * w.width + right

            def pixels(column: Expr, count: int) -> None:
                self._writer.tile(
                    self._kernel["x"],
                    x_line + column,
                    y_line + column,
                    panel,
                    start,
                    rows=count,
                    weights_at=weights_at,
                    begins_at_y=len(_taps(w)) > 1,
                    epilogue=epilogue,
                )

            if full:
                with T.serial(0, full) as tiles:
                    pixels(tap.left + tiles * tile, tile)
            if rest:
                pixels(tap.left + full * tile, rest)
