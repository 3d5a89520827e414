"""Depthwise convolution by VPDPBUSD: four neighbouring columns of a channel side by side.

An instruction that adds four products to each 32-bit lane wants four bytes of one channel there.
Four pixels are interleaved byte by byte, which takes two instructions for each vector of the
result, and one such quad serves every output that its columns are seen from, with the filter's row
moved along:

    columns of the quad      x0  x1  x2  x3
    output 0                 w0  w1  w2   0
    output 1 (stride 1)       0  w0  w1  w2

Narrowing to bytes undoes the order that interleaving leaves the channels in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet.schedule.emit import Expr, Memory, Registers
from tvm_mobilenet.schedule.intrinsics import x86

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload
    from tvm_mobilenet.targets import Cpu

__all__ = ["QUAD", "choose_dots_tile", "filter_blocks", "pack_filters", "write_dots"]

QUAD = 4
"""Columns that lie side by side in a lane of 32 bits, and vectors that as many pixels make."""


def filter_blocks(
    kernel: tuple[int, int], stride: int, column_tile: int
) -> list[tuple[int, int, int]]:
    """Return (row of the filter, quad, output column) wherever the quad meets the filter."""
    height, width = kernel
    quads = math.ceil(((column_tile - 1) * stride + width) / QUAD)
    return [
        (ky, quad, column)
        for ky in range(height)
        for quad in range(quads)
        for column in range(column_tile)
        if quad * QUAD < column * stride + width and (quad + 1) * QUAD > column * stride
    ]


def choose_dots_tile(workload: IntegerConvWorkload, cpu: Cpu) -> tuple[int, int]:
    """Return the (rows, columns) of the register tile with the fewest instructions an output."""
    w = workload

    def cost(tile: tuple[int, int]) -> float:
        rows, columns = tile
        quads = math.ceil(((columns - 1) * w.stride[1] + w.kernel[1]) / QUAD)
        read = (rows - 1) * w.stride[0] + w.kernel[0]
        dots = QUAD * rows * len(filter_blocks(w.kernel, w.stride[1], columns))
        tiles = math.ceil(w.out_height / rows) * math.ceil(w.out_width / columns)
        return tiles * (dots + 2 * QUAD * read * quads)

    # The other half holds a quad, what it is made of and filters.
    most = max(1, cpu.vector_registers // 2 // QUAD)
    tiles = [
        (rows, columns)
        for rows in range(1, min(w.out_height, most) + 1)
        for columns in range(1, min(w.out_width, most) + 1)
        if rows * columns <= most
    ]
    return min(tiles, key=cost)


def pack_filters(
    taps: np.ndarray, kernel: tuple[int, int], stride: int, column_tile: int
) -> np.ndarray:
    """Lay out int8 filters (planes, lanes, kH * kW) as quads meet them.

    Returns (planes, blocks, lanes of 32 bits, QUAD), in the order of `filter_blocks` and of
    interleaved channels.
    """
    planes, lanes, _ = taps.shape
    filters = taps.reshape(planes, lanes, *kernel)
    order = x86.interleaved_order(lanes // QUAD)
    blocks = []
    for ky, quad, column in filter_blocks(kernel, stride, column_tile):
        block = np.zeros((planes, lanes, QUAD), np.int8)
        for byte in range(QUAD):
            kx = quad * QUAD + byte - column * stride
            if 0 <= kx < kernel[1]:
                block[:, :, byte] = filters[:, :, ky, kx]
        blocks.append(block[:, order])
    return np.stack(blocks, axis=1)


def write_dots(
    workload: IntegerConvWorkload,
    tile: tuple[int, int],
    lanes: int,
    load: Callable[[int, int], Expr],
    filters: Memory,
    filters_at: Expr,
    bias: list[Expr],
) -> Callable[[int, int], list[Expr]]:
    """Write the sums of one tile.

    Args:
        workload: the convolution.
        tile: its (rows, columns).
        lanes: channels of a plane, four times as many as lanes of 32 bits.
        load: reads the uint8 vector of pixel (row, column) under the tile's corner.
        filters: what `pack_filters` lays out, flat.
        filters_at: where the plane's begin.
        bias: the int32 vectors that sums begin at, their channels in interleaved order.

    Returns:
        For a (row, column) of the tile, four int32 vectors, their channels in interleaved order.
    """
    w = workload
    rows, columns = tile
    count = lanes // QUAD
    blocks = filter_blocks(w.kernel, w.stride[1], columns)
    sums = {(r, c): Registers(QUAD, "int32", count) for r in range(rows) for c in range(columns)}
    for registers in sums.values():
        for vector in range(QUAD):
            registers[vector] = bias[vector]
    for y in range((rows - 1) * w.stride[0] + w.kernel[0]):
        for quad in sorted({quad for _, quad, _ in blocks}):
            pixels = Registers(QUAD, "uint8", lanes)
            for x in range(QUAD):
                pixels[x] = load(y, quad * QUAD + x)
            values = Registers(QUAD, "uint8", lanes)
            for vector, value in enumerate(x86.interleave([pixels[x] for x in range(QUAD)], count)):
                values[vector] = value
            for r in range(rows):
                for number, (ky, met, c) in enumerate(blocks):
                    if met != quad or ky != y - r * w.stride[0]:
                        continue
                    for vector in range(QUAD):
                        at = filters_at + (number * QUAD + vector) * lanes
                        sums[r, c][vector] = x86.dot(
                            sums[r, c][vector], values[vector], filters.load(at, lanes), count
                        )
    return lambda r, c: [sums[r, c][vector] for vector in range(QUAD)]
