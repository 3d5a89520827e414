"""Integer convolutions of any kernel size, the stem among them, as a product of unrolled windows.

The image is copied with its padding, each window of it becomes a row of bytes (for each row of the
kernel, the pixels that it covers lie side by side in NHWC), and the rows are multiplied as those of
a pointwise convolution. Unrolling takes three or four instructions for each 16 bytes; the stem's
product ten times as many. With VPDPBUSD nothing is unrolled: see `direct_convolution.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.integer.direct_convolution import (
    filter_matrix,
    pixels_of_tile,
    write_direct,
)
from tvm_mobilenet.schedule.integer.matmul import (
    IntegerMatmulPlan,
    PackedWeights,
    pack_integer_matmul,
    plan_integer_matmul,
    weight_parameters,
    write_product,
)
from tvm_mobilenet.schedule.integer.rows import CHUNK, Rows
from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload, IntegerMatmulWorkload
from tvm_mobilenet.schedule.intrinsics.vectors import integer

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["pack_integer_conv", "plan_integer_conv", "write_integer_conv"]

_DEPTH_UNIT = 8
"""Rows are filled up to a multiple of it, with weights of 0."""


def unrolled(workload: IntegerConvWorkload) -> IntegerMatmulWorkload:
    """Return the product of unrolled windows that a convolution is."""
    w = workload
    return IntegerMatmulWorkload(
        rows=w.batch * w.out_height * w.out_width,
        depth=math.ceil(w.depth / _DEPTH_UNIT) * _DEPTH_UNIT,
        columns=w.out_channels,
        dtype=w.dtype,
        requantize=w.requantize,
    )


def plan_integer_conv(workload: IntegerConvWorkload, cpu: Cpu) -> IntegerMatmulPlan:
    """Compute the plan of the product of unrolled windows."""
    plan = plan_integer_matmul(unrolled(workload), cpu)
    if plan.product == "vnni":
        plan = replace(plan, row_tile=pixels_of_tile(workload, plan, cpu))
    return plan


def pack_integer_conv(
    weights: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    dtype: str,
    plan: IntegerMatmulPlan,
) -> PackedWeights:
    """Lay out int8 weights (O, kH, kW, I), int32 bias and float32 scale (O,) for a plan."""
    if plan.product == "vnni":
        return pack_integer_matmul(filter_matrix(weights), bias, scale, dtype, plan)
    matrix = weights.reshape(weights.shape[0], -1).T
    matrix = np.pad(matrix, ((0, -len(matrix) % _DEPTH_UNIT), (0, 0)))
    return pack_integer_matmul(matrix, bias, scale, dtype, plan)


def write_integer_conv(workload: IntegerConvWorkload, packed: PackedWeights) -> PrimFunc:
    """Write the kernel (x NHWC, w, bias, scale[, rest, places]) -> y NHWC."""
    w = workload
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.in_channels), w.dtype),
        *weight_parameters(packed),
        Parameter(
            "y",
            (w.batch, w.out_height, w.out_width, w.out_channels),
            w.requantize.dtype if w.requantize else "float32",
        ),
    ]

    def body(kernel: KernelWriter) -> None:
        if packed.plan.product == "vnni":
            write_direct(kernel, w, packed.plan)
            return
        windows = _Windows(kernel, w, packed.plan.is_parallel)
        windows.copy_image()
        source = windows.unroll()
        write_product(kernel, unrolled(w), packed.plan, source)

    return write_kernel(w.dtype, parameters, body)


class _Windows:
    """Writes the padded image and the rows that its windows become."""

    def __init__(self, kernel: KernelWriter, workload: IntegerConvWorkload, parallel: bool) -> None:
        self._kernel, self._workload, self._is_parallel = kernel, workload, parallel
        w = workload
        self._width = w.width + w.padding[1] + w.padding[3]
        self._height = w.height + w.padding[0] + w.padding[2]
        self._line = self._width * w.in_channels
        # Pieces of 16 bytes reach up to 15 beyond what they are for.
        self._image = kernel.scratch(w.batch * self._height * self._line + CHUNK, w.dtype)

    def copy_image(self) -> None:
        """Copy the image, with its padding around it."""
        w = self._workload
        before, after = w.padding[1] * w.in_channels, w.padding[3] * w.in_channels
        with task_loop(w.batch * self._height, self._is_parallel) as index:
            image, row = index // self._height, index % self._height
            target = index * self._line
            source = row - w.padding[0]

            def inside() -> None:
                self._fill(target, before)
                line = (image * w.height + source) * w.width * w.in_channels
                _copy(
                    self._kernel["x"], line, self._image, target + before, w.width * w.in_channels
                )
                self._fill(target + before + w.width * w.in_channels, after)

            if w.padding[0] or w.padding[2]:
                with T.If(tirx.all(source >= 0, source < w.height)):
                    with T.Then():
                        inside()
                    with T.Else():
                        self._fill(target, self._line)
            else:
                inside()

    def _fill(self, at: Expr, count: int) -> None:
        """Write the padding's value `count` times."""
        w = self._workload
        whole, rest = divmod(count, CHUNK)
        if whole:
            with T.serial(0, whole) as piece:
                self._image.store(at + piece * CHUNK, integer(w.pad, w.dtype, CHUNK), CHUNK)
        for index in range(rest):
            self._image.store(at + whole * CHUNK + index, integer(w.pad, w.dtype, 1))

    def unroll(self) -> Rows:
        """Write a row of bytes for each output pixel; returns the rows.

        A row of the kernel is copied in pieces of 16 bytes. What the last one copies too much, the
        next row of the kernel overwrites, or it meets weights of 0: it stays in the window's own
        row of bytes, since the next may be another thread's.
        """
        w = self._workload
        depth = unrolled(w).depth
        span = w.kernel[1] * w.in_channels
        written = (w.kernel[0] - 1) * span + math.ceil(span / CHUNK) * CHUNK
        stride = max(depth, math.ceil(written / _DEPTH_UNIT) * _DEPTH_UNIT)
        rows = self._kernel.scratch(w.batch * w.out_height * w.out_width * stride, w.dtype)
        with task_loop(w.batch * w.out_height, self._is_parallel) as line:
            image, row = line // w.out_height, line % w.out_height
            corner = (image * self._height + row * w.stride[0]) * self._line
            with T.serial(0, w.out_width) as column:
                target = (line * w.out_width + column) * stride
                source = corner + column * (w.stride[1] * w.in_channels)
                for ky in range(w.kernel[0]):
                    for piece in range(0, span, CHUNK):
                        value = self._image.load(source + ky * self._line + piece, CHUNK)
                        rows.store(target + ky * span + piece, value, CHUNK)
        return Rows(rows, stride, depth)


def _copy(source: Memory, start: Expr, target: Memory, at: Expr, count: int) -> None:
    """Copy `count` bytes; the last piece is moved back where there is room for it."""
    whole, rest = divmod(count, CHUNK)
    if whole:
        with T.serial(0, whole) as piece:
            target.store(at + piece * CHUNK, source.load(start + piece * CHUNK, CHUNK), CHUNK)
    if rest and whole:
        last = count - CHUNK
        target.store(at + last, source.load(start + last, CHUNK), CHUNK)
    elif rest:
        for index in range(rest):
            target.store(at + index, source.load(start + index))
