"""Bilinear resizing of NHWC: rows are blended first, then columns of the blended row.

To NHWC the vectors run along the channels. To NCHW they run along the columns: between two columns
of the input lie as many of the output as the picture grows, with the same weights each time where
it grows by a whole factor, so that one multiply-add makes a vector of them. The transpose that a
model would end with is thereby saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    broadcast,
    overlapping_start,
    split_lanes,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.workload import ResizeWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["AxisTable", "ResizePlan", "axis_table", "plan_resize", "resize_tables", "write_resize"]

_ROWS_PER_TASK = 8
"""To NCHW every task lays its channel's image out anew, which some rows have to repay."""


@dataclass(frozen=True, kw_only=True)
class ResizePlan:
    """How a picture is resized."""

    lanes: int
    """Elements of a full vector."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""


@dataclass(frozen=True)
class AxisTable:
    """Which two pixels of one axis each output pixel lies between."""

    first: npt.NDArray[np.int32]
    second: npt.NDArray[np.int32]
    share: npt.NDArray[np.float32]
    """Of the second; 0 to 1."""

    @property
    def period(self) -> tuple[int, int] | None:
        """Return first output pixel after the left border and the pixels to one of the input.

        None where the picture does not grow by a whole factor.
        """
        inside = self.second > self.first
        if not inside.any():
            return None
        start = int(np.argmax(inside))
        low = int(self.first[start])
        steps = int(np.count_nonzero(inside & (self.first == low)))
        extent = int(self.second.max()) + 1
        whole = np.arange(start, start + (extent - 1) * steps)
        if low != 0 or whole[-1] >= len(self.first):
            return None
        places = (whole - start) // steps
        shares = np.tile(self.share[start : start + steps], extent - 1)
        is_regular = np.array_equal(self.first[whole], places) and np.array_equal(
            self.second[whole], places + 1
        )
        return (start, steps) if is_regular and np.allclose(shares, self.share[whole]) else None


def axis_table(before: int, after: int, mode: str) -> AxisTable:
    """Compute where output pixels lie, by the formulas of ONNX's Resize (operator set 19)."""
    out = np.arange(after, dtype=np.float64)
    if mode == "align_corners":
        places = out * ((before - 1) / (after - 1)) if after > 1 else out * 0
    elif mode == "asymmetric":
        places = out * (before / after)
    elif mode == "pytorch_half_pixel" and after == 1:
        places = out * 0
    else:
        places = (out + 0.5) * (before / after) - 0.5
    low = np.floor(places + 1e-9)
    share = np.clip(places - low, 0, 1)
    first = np.clip(low, 0, before - 1).astype(np.int32)
    second = np.clip(low + 1, 0, before - 1).astype(np.int32)
    # On the border both are the same pixel, whatever the share says.
    return AxisTable(first, second, np.where(first == second, 0, share).astype(np.float32))


def plan_resize(workload: ResizeWorkload, cpu: Cpu) -> ResizePlan:
    """Compute the plan: vectors as wide as the processor's."""
    return ResizePlan(
        lanes=cpu.lanes(workload.dtype), is_parallel=pays_to_parallelize(workload, cpu)
    )


def resize_tables(workload: ResizeWorkload) -> list[np.ndarray]:
    """Return what the kernel reads beside the picture: for rows and columns, pixels and shares.

    Shapes:
        (2, out_height) i32, (out_height,) f32, (2, out_width) i32, (out_width,) f32.
    """
    arrays: list[np.ndarray] = []
    for table in _tables(workload):
        arrays += [np.stack([table.first, table.second]), table.share]
    return arrays


def _tables(workload: ResizeWorkload) -> tuple[AxisTable, AxisTable]:
    w = workload
    return (
        axis_table(w.height, w.out_height, w.mode),
        axis_table(w.width, w.out_width, w.mode),
    )


def write_resize(workload: ResizeWorkload, plan: ResizePlan) -> PrimFunc:
    """Write the kernel (x NHWC, tables of rows and columns) -> y in `output_layout`."""
    w = workload
    is_nchw = w.output_layout == "NCHW"
    image = (w.out_height, w.out_width)
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.channels)),
        Parameter("rows", (2, w.out_height), "int32"),
        Parameter("row_shares", (w.out_height,), "float32"),
        Parameter("columns", (2, w.out_width), "int32"),
        Parameter("column_shares", (w.out_width,), "float32"),
        Parameter("y", (w.batch, w.channels, *image) if is_nchw else (w.batch, *image, w.channels)),
    ]

    def body(kernel: KernelWriter) -> None:
        if is_nchw:
            _ToNchw(kernel, w, plan).write()
        else:
            _to_nhwc(kernel, w, plan)

    return write_kernel(w.dtype, parameters, body)


def _to_nhwc(kernel: KernelWriter, w: ResizeWorkload, plan: ResizePlan) -> None:
    """Write every output row as a task."""
    with task_loop(w.batch * w.out_height, plan.is_parallel) as task:
        image = task // w.out_height if w.batch > 1 else 0
        row = task % w.out_height if w.batch > 1 else task
        line = kernel.scratch(w.width * w.channels)
        _blend_rows(kernel, w, plan, kernel["x"], image * w.height, w.width * w.channels, row, line)
        with T.serial(0, w.out_width) as column:
            first = kernel["columns"].load(column) * w.channels
            second = kernel["columns"].load(w.out_width + column) * w.channels
            share = kernel["column_shares"].load(column)
            out = ((image * w.out_height + row) * w.out_width + column) * w.channels

            def blend(
                channel: Expr,
                lanes: int,
                first: Expr = first,
                second: Expr = second,
                share: Expr = share,
                out: Expr = out,
            ) -> None:
                a, b = line.load(first + channel, lanes), line.load(second + channel, lanes)
                value = a + (b - a) * broadcast(share, lanes)
                kernel["y"].store(out + channel, value, lanes)

            _each_vector(w.channels, plan.lanes, blend)


def _blend_rows(
    kernel: KernelWriter,
    w: ResizeWorkload,
    plan: ResizePlan,
    x: Memory,
    first_line: Expr,
    length: int,
    row: Expr,
    line: Memory,
) -> None:
    """Write into `line` the blend of two lines of `length` elements of `x`."""
    top = (first_line + kernel["rows"].load(row)) * length
    bottom = (first_line + kernel["rows"].load(w.out_height + row)) * length
    share = kernel["row_shares"].load(row)

    def blend(at: Expr, lanes: int) -> None:
        a, b = x.load(top + at, lanes), x.load(bottom + at, lanes)
        line.store(at, a + (b - a) * broadcast(share, lanes), lanes)

    _each_vector(length, plan.lanes, blend)


def _each_vector(extent: int, lanes: int, write: Expr) -> None:
    """Write a loop over the full vectors of `extent` elements, and what is left after it."""
    full = extent // lanes
    if full:
        with T.serial(0, full) as vector:
            write(vector * lanes, lanes)
    for offset, width in split_lanes(extent, lanes)[full:]:
        write(offset, width)


class _ToNchw:
    """Writes the kernel whose output is NCHW: a task is some rows of one channel."""

    def __init__(self, kernel: KernelWriter, workload: ResizeWorkload, plan: ResizePlan) -> None:
        self._kernel = kernel
        self._w = workload
        self._plan = plan
        self._table = _tables(workload)[1]
        self._period = self._table.period

    def write(self) -> None:
        """Write the loop over tasks."""
        w, kernel = self._w, self._kernel
        rows = min(w.out_height, max(_ROWS_PER_TASK, w.out_height // 4))
        blocks = -(-w.out_height // rows)
        with task_loop(w.batch * w.channels * blocks, self._plan.is_parallel) as task:
            plane = task // blocks
            image, channel = plane // w.channels, plane % w.channels
            first_row = overlapping_start(task % blocks, rows, w.out_height)
            x = kernel.scratch(w.height * w.width)
            with T.serial(0, w.height * w.width) as pixel:
                at = (image * w.height * w.width + pixel) * w.channels + channel
                x.store(pixel, kernel["x"].load(at))
            line = kernel.scratch(w.width)
            with T.serial(0, rows) as index:
                row = first_row + index
                _blend_rows(kernel, w, self._plan, x, 0, w.width, row, line)
                out = (plane * w.out_height + row) * w.out_width
                if self._period is None:
                    self._any_columns(line, out)
                else:
                    self._columns(line, out, *self._period)

    def _any_columns(self, line: Memory, out: Expr) -> None:
        kernel, w = self._kernel, self._w
        with T.serial(0, w.out_width) as column:
            a = line.load(kernel["columns"].load(column))
            b = line.load(kernel["columns"].load(w.out_width + column))
            value = a + (b - a) * kernel["column_shares"].load(column)
            kernel["y"].store(out + column, value)

    def _columns(self, line: Memory, out: Expr, start: int, steps: int) -> None:
        """Write the borders, and `steps` columns after each column of the input but the last."""
        w, kernel = self._w, self._kernel
        end = start + (w.width - 1) * steps
        for begin, stop, source in ((0, start, 0), (end, w.out_width, w.width - 1)):
            for offset, lanes in split_lanes(stop - begin, self._plan.lanes):
                value = broadcast(line.load(source), lanes)
                kernel["y"].store(out + begin + offset, value, lanes)
        pieces = split_lanes(steps, self._plan.lanes)
        with T.serial(0, w.width - 1) as column:
            a = line.load(column)
            step = line.load(column + 1) - a
            for offset, lanes in pieces:
                share = kernel["column_shares"].load(start + offset, lanes)
                value = broadcast(a, lanes) + broadcast(step, lanes) * share
                kernel["y"].store(out + start + column * steps + offset, value, lanes)
