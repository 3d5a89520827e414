"""Integer convolutions by VPDPBUSD, their windows multiplied where they lie in the image.

In NHWC the pixels that one row of a filter covers lie side by side, and four bytes are broadcast
from any address: nothing is unrolled. A task copies the lines that it needs with their padding,
which also makes uint8 of int8. Each row of the filter is filled up to whole steps with weights of
0, which meet whatever bytes follow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Registers,
    overlapping_start,
    task_loop,
)
from tvm_mobilenet.schedule.integer.requantize import store_rows
from tvm_mobilenet.schedule.integer.rows import CHUNK
from tvm_mobilenet.schedule.intrinsics import x86
from tvm_mobilenet.schedule.intrinsics.vectors import integer, same_bits

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan
    from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["filter_matrix", "pixels_of_tile", "write_direct"]

_STEP = 4
_TASK_BYTES = 16 * 1024
"""Lines of a task: half of the smallest L1 cache."""
_WRITTEN_STEPS = 8
"""Steps of a row of the filter that are written out."""


def filter_matrix(weights: np.ndarray) -> np.ndarray:
    """Return int8 weights (O, kH, kW, I) as (depth, O), each row of a filter in whole steps."""
    outputs, height, *_ = weights.shape
    lines = weights.reshape(outputs, height, -1)
    padded = np.pad(lines, ((0, 0), (0, 0), (0, -lines.shape[2] % _STEP)))
    return np.ascontiguousarray(padded.reshape(outputs, -1).T)


def pixels_of_tile(workload: IntegerConvWorkload, plan: IntegerMatmulPlan, cpu: Cpu) -> int:
    """Return the pixels of a register tile, which lie in one line of the output.

    LLVM reads the filters of a few steps ahead; five eighths of the registers hold totals, so that
    none is spilled (seen: tiles that fill the register file write them back each step).
    """
    most = max(1, cpu.vector_registers * 5 // 8 // plan.column_vectors)
    width = workload.out_width

    def cost(pixels: int) -> tuple[int, int]:
        return math.ceil(width / pixels) * pixels, -pixels

    return min(range(1, min(most, plan.row_tile, width) + 1), key=cost)


def write_direct(
    kernel: KernelWriter, workload: IntegerConvWorkload, plan: IntegerMatmulPlan
) -> None:
    """Write the convolution, its weights packed by the plan from `filter_matrix`."""
    w = workload
    lines = _lines(w)
    blocks = math.ceil(w.out_height / lines)
    with task_loop(w.batch * blocks, plan.is_parallel) as task:
        # Inside the loop, for each thread to have lines of its own.
        writer = _Direct(kernel, w, plan, lines)
        image = task // blocks if w.batch > 1 else 0
        block = task % blocks if w.batch > 1 else task
        first = overlapping_start(block, lines, w.out_height)
        writer.copy(image, first)
        turns = math.ceil(w.out_width / writer.columns)
        with T.serial(0, lines) as line, T.serial(0, turns) as index:
            column = overlapping_start(index, writer.columns, w.out_width)
            pixel = (image * w.out_height + first + line) * w.out_width + column
            writer.tiles(line, column, pixel)


def _line_bytes(w: IntegerConvWorkload) -> int:
    return (w.width + w.padding[1] + w.padding[3]) * w.in_channels


def _lines(w: IntegerConvWorkload) -> int:
    """Return the output lines of a task."""
    most = 1
    for lines in range(1, w.out_height + 1):
        read = (lines - 1) * w.stride[0] + w.kernel[0]
        if read * _line_bytes(w) <= _TASK_BYTES:
            most = lines
    tasks = math.ceil(w.out_height / most)
    if tasks > 1:
        # Two or four threads should all have as many.
        tasks = math.ceil(tasks / 4) * 4
    return max(1, math.ceil(w.out_height / tasks))


class _Direct:
    def __init__(
        self,
        kernel: KernelWriter,
        workload: IntegerConvWorkload,
        plan: IntegerMatmulPlan,
        lines: int,
    ) -> None:
        self._kernel, self._workload, self._plan = kernel, workload, plan
        w = workload
        self.columns = min(plan.row_tile, w.out_width)
        """Output pixels of a tile; they lie in one line."""
        self._line = _line_bytes(w)
        self._read = (lines - 1) * w.stride[0] + w.kernel[0]
        self._image = kernel.scratch(self._read * self._line + CHUNK, "uint8")
        self._steps = math.ceil(w.kernel[1] * w.in_channels / _STEP)

    # -- the lines of a task -----------------------------------------------------------------

    def copy(self, image: Expr, first: Expr) -> None:
        """Copy the lines that output lines from `first` on are seen from."""
        w = self._workload
        before, inside = w.padding[1] * w.in_channels, w.width * w.in_channels
        after = w.padding[3] * w.in_channels
        with T.serial(0, self._read) as line:
            source, target = first * w.stride[0] + line - w.padding[0], line * self._line

            def whole() -> None:
                self._fill(target, before)
                self._copy((image * w.height + source) * inside, target + before, inside)
                self._fill(target + before + inside, after)

            if not (w.padding[0] or w.padding[2]):
                whole()
            else:
                with T.If(tirx.all(source >= 0, source < w.height)):
                    with T.Then():
                        whole()
                    with T.Else():
                        self._fill(target, self._line)

    def _fill(self, at: Expr, count: int) -> None:
        w = self._workload
        pad = w.pad + (128 if w.dtype == "int8" else 0)
        pieces, rest = divmod(count, CHUNK)
        if pieces:
            with T.serial(0, pieces) as piece:
                self._image.store(at + piece * CHUNK, integer(pad, "uint8", CHUNK), CHUNK)
        for index in range(rest):
            self._image.store(at + pieces * CHUNK + index, integer(pad, "uint8", 1))

    def _copy(self, start: Expr, at: Expr, count: int) -> None:
        """Copy `count` bytes; the last piece is moved back where there is room for it."""
        width = min(4 * CHUNK, 1 << (count.bit_length() - 1))
        with T.serial(0, math.ceil(count / width)) as piece:
            offset = overlapping_start(piece, width, count)
            value = self._kernel["x"].load(start + offset, width)
            if self._workload.dtype == "int8":
                suffix = f"x{width}" if width > 1 else ""
                value = same_bits(value ^ integer(-128, "int8", width), f"uint8{suffix}")
            self._image.store(at + offset, value, width)

    # -- the tiles ---------------------------------------------------------------------------

    def tiles(self, line: Expr, column: Expr, pixel: Expr) -> None:
        """Write all outputs of the pixels from `column` on."""
        w, plan = self._workload, self._plan
        corner = line * w.stride[0] * self._line + column * (w.stride[1] * w.in_channels)
        width = plan.column_vectors * plan.lanes
        panels = plan.panels(w.out_channels)
        full = sum(
            count == plan.column_vectors and first + width <= w.out_channels
            for first, count in panels
        )
        if full == 1:
            self._tile(corner, pixel, 0, plan.column_vectors)
        elif full:
            with T.serial(0, full) as panel:
                self._tile(corner, pixel, panel, plan.column_vectors)
        for number in range(full, len(panels)):
            self._tile(corner, pixel, number, panels[number][1])

    def _tile(self, corner: Expr, pixel: Expr, panel: Expr, vectors: int) -> None:
        w, plan, kernel = self._workload, self._plan, self._kernel
        lanes, start = plan.lanes, panel * (plan.column_vectors * plan.lanes)
        # All but a last panel are whole, and then the index is an expression.
        valid = vectors * lanes
        if isinstance(panel, int):
            valid = min(valid, w.out_channels - panel * plan.column_vectors * lanes)
        sums = [Registers(vectors, "int32", lanes) for _ in range(self.columns)]
        for vector in range(vectors):
            bias = kernel["bias"].load(start + vector * lanes, lanes)
            for pixels in sums:
                pixels[vector] = bias
        base = start * (w.kernel[0] * self._steps * _STEP)

        def step(ky: Expr, index: Expr) -> None:
            at = base + (ky * self._steps + index) * (vectors * _STEP * lanes)
            filters = Registers(vectors, "int8", _STEP * lanes)
            for vector in range(vectors):
                filters[vector] = kernel["w"].load(at + vector * _STEP * lanes, _STEP * lanes)
            source = corner + ky * self._line + index * _STEP
            for number, pixels in enumerate(sums):
                offset = number * w.stride[1] * w.in_channels
                four = self._image.load(source + offset, _STEP)
                values = x86.spread(four, "uint8", _STEP * lanes)
                for vector in range(vectors):
                    pixels[vector] = x86.dot(pixels[vector], values, filters[vector], lanes)

        with T.serial(0, w.kernel[0]) as ky:
            if self._steps <= _WRITTEN_STEPS:
                for index in range(self._steps):
                    step(ky, index)
            else:
                with T.serial(0, self._steps) as index:
                    step(ky, index)
        store_rows(
            kernel["y"],
            [(pixel + number) * w.out_channels + start for number in range(self.columns)],
            [[pixels[vector] for vector in range(vectors)] for pixels in sums],
            [kernel["scale"].load(start + vector * lanes, lanes) for vector in range(vectors)],
            lanes,
            valid,
            w.requantize,
            plan.arithmetic,
        )
