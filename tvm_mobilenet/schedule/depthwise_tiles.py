"""Depthwise convolutions in tiles of rows and columns, the channels innermost.

For processors with registers enough to keep a filter beside a tile of several output rows: each
input vector is loaded once for all outputs that read it, the outputs of neighbouring rows among
them. The innermost loop runs over the channels, so that every address in it is a pointer plus a
constant, and a cache line is used up before the next is asked for. The weights are packed vector by
vector, all taps of four channels together, and load as pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Registers,
    apply_epilogue,
    constant,
    overlapping_start,
    when,
)
from tvm_mobilenet.schedule.window import WidthTile, each_width_tile, width_tiles
from tvm_mobilenet.schedule.workload import ConvWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "DepthwiseTile",
    "DepthwiseTileWriter",
    "choose_tile",
    "pack_tile_weights",
    "row_starts",
    "tile_fault",
]

_RESIDENT_TAPS = 9
"""Filters of up to that many taps stay in registers; of larger ones, one row at a time."""
_SPARE_REGISTERS = 5
"""Inputs in flight, and the bounds of the activation."""
_LOOP_INSTRUCTIONS = 7
"""Pointers, counter, branch and the bias of one step over the channels; seen in object code."""
_MOST_ROWS = 4
_MOST_COLUMNS = 16

Store = Callable[[int, int, Expr, Expr], Callable[[Expr, list[Expr]], None]]
"""Given rows, columns and the first row and column of a tile, returns what stores it: called in
the loop over the channels with the channel and the values, row by row."""


@dataclass(frozen=True)
class DepthwiseTile:
    """Output pixels of one register tile."""

    rows: int
    columns: int
    instructions: float
    """Of all tiles of one task, all channels."""


def accumulator_room(workload: ConvWorkload, cpu: Cpu) -> int:
    """Return how many registers are left to the outputs of a tile."""
    taps = workload.kernel[0] * workload.kernel[1]
    resident = taps if taps <= _RESIDENT_TAPS else workload.kernel[1]
    return cpu.vector_registers - resident - _SPARE_REGISTERS


def tile_fault(workload: ConvWorkload, cpu: Cpu, rows: int, columns: int) -> str | None:
    """Return why a tile of rows and columns cannot be used, or None.

    What the loop over the channels keeps but its accumulators was measured to need less than what
    `choose_tile` sets aside: two registers of it are left for a search to try.
    """
    w = workload
    if not (1 <= rows <= w.out_height and 1 <= columns <= w.out_width):
        return f"a tile of {rows} x {columns} is not within {w.out_height} x {w.out_width}"
    if rows > 1 and w.kernel[0] * w.kernel[1] > _RESIDENT_TAPS:
        return f"row_tile {rows}: filters of that size leave room for one row"
    room = accumulator_room(w, cpu) + 2
    return None if rows * columns <= room else f"{rows} x {columns} exceeds {room} registers"


def choose_tile(
    workload: ConvWorkload, cpu: Cpu, *, rows: int, column_multiple: int = 1
) -> DepthwiseTile:
    """Return the cheapest register tile by its count of instructions.

    `rows` are the output rows of one task; columns are a multiple of `column_multiple` where the
    store wants whole groups.
    """
    w = workload
    taps = w.kernel[0] * w.kernel[1]
    room = accumulator_room(w, cpu)
    vectors = w.in_channels // cpu.lanes(w.dtype)
    best: DepthwiseTile | None = None
    for r in range(1, min(rows, _MOST_ROWS) + 1):
        if r > 1 and taps > _RESIDENT_TAPS:
            break
        for c in range(column_multiple, min(w.out_width, _MOST_COLUMNS) + 1, column_multiple):
            if r * c > max(room, column_multiple):
                break
            in_rows = (r - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1
            in_columns = (c - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1
            # Each output begins at the bias, is bounded twice and stored.
            outputs = r * c * (taps + 4)
            loads = min(in_rows, r * w.kernel[0]) * min(in_columns, c * w.kernel[1]) + taps / 2
            tiles = -(-rows // r) * -(-w.out_width // c)
            cost = vectors * tiles * (outputs + loads + _LOOP_INSTRUCTIONS)
            if best is None or cost < best.instructions:
                best = DepthwiseTile(r, c, cost)
    if best is None:
        raise AssertionError(f"no depthwise tile of {column_multiple} columns fits {workload}")
    return best


def pack_tile_weights(weights: np.ndarray, lanes: int) -> np.ndarray:
    """Return weights (channels, 1, kH, kW) as one flat array (channels / lanes, taps, lanes)."""
    by_tap = weights.reshape(weights.shape[0] // lanes, lanes, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(by_tap).reshape(-1)


def row_starts(index: Expr, row_tile: int, rows: int, first_row: Expr) -> Expr:
    """Return the first output row of row tile `index`, of `rows` rows from `first_row` on."""
    return first_row + overlapping_start(index, row_tile, rows)


class DepthwiseTileWriter:
    """Writes tiles of one depthwise convolution into a kernel."""

    def __init__(
        self,
        kernel: KernelWriter,
        workload: ConvWorkload,
        *,
        lanes: int,
        row_tile: int,
        column_tile: int,
        weights: str = "w",
        bias: str = "bias",
    ) -> None:
        self._x = kernel["x"]
        self._w = kernel[weights]
        self._bias = kernel.get(bias) if workload.epilogue.bias else None
        self._residual = kernel.get("residual") if workload.epilogue.residual else None
        self._workload = workload
        self._lanes = lanes
        self._rows = row_tile
        self._tiles = width_tiles(workload, column_tile)

    def store_to(self, y: Memory, image: Expr) -> Store:
        """Return what stores tiles to a tensor in NHWC."""
        w = self._workload

        def open_tile(rows: int, columns: int, row: Expr, column: Expr) -> Callable[..., None]:
            pixel = (image * w.out_height + row) * w.out_width + column
            first = y.at(pixel * w.out_channels)

            def store(channel: Expr, values: list[Expr]) -> None:
                for r in range(rows):
                    for c in range(columns):
                        index = (r * w.out_width + c) * w.out_channels + channel
                        first.store(index, values[r * columns + c], self._lanes)

            return store

        return open_tile

    def row_of_tiles(
        self, image: Expr, row: Expr, store: Store, channels: tuple[Expr, int]
    ) -> None:
        """Write output rows from `row` on, for (first vector, number of vectors) of channels."""
        for tile in self._tiles:
            with each_width_tile(tile) as column:
                is_inside = self._rows_inside(row)
                if is_inside is None:
                    self._tile(tile, image, row, column, store, channels, is_guarded=False)
                    continue
                with T.If(is_inside):
                    with T.Then():
                        self._tile(tile, image, row, column, store, channels, is_guarded=False)
                    with T.Else():
                        self._tile(tile, image, row, column, store, channels, is_guarded=True)

    def _input_rows(self) -> list[int]:
        """Return the input rows that a tile reads, counted from its first."""
        w = self._workload
        return sorted(
            {
                r * w.stride[0] + ky * w.dilation[0]
                for r in range(self._rows)
                for ky in range(w.kernel[0])
            }
        )

    def _rows_inside(self, row: Expr) -> Expr | None:
        """Return when every input row is on the image; None for always."""
        w = self._workload
        first = row * w.stride[0] - w.padding[0]
        last = first + self._input_rows()[-1]
        conditions = []
        if w.padding[0] > 0:
            conditions.append(first >= 0)
        bottom = (w.out_height - self._rows) * w.stride[0] - w.padding[0] + self._input_rows()[-1]
        if bottom >= w.height:
            conditions.append(last < w.height)
        if not conditions:
            return None
        return conditions[0] if len(conditions) == 1 else tirx.all(*conditions)

    def _tile(
        self,
        tile: WidthTile,
        image: Expr,
        row: Expr,
        column: Expr,
        store: Store,
        channels: tuple[Expr, int],
        *,
        is_guarded: bool,
    ) -> None:
        w, lanes = self._workload, self._lanes
        finish = store(self._rows, tile.columns, row, column)
        first_row = row * w.stride[0] - w.padding[0]
        first_column = column * w.stride[1] - w.padding[1]
        uses = self._uses(tile)
        skipped = min(uses)
        corner = None
        if not is_guarded:
            pixel = (image * w.height + first_row) * w.width + first_column + skipped
            corner = self._x.at(pixel * w.in_channels)
        taps = w.kernel[0] * w.kernel[1]
        first_vector, vectors = channels
        with T.serial(0, vectors) as step:
            vector = first_vector + step
            channel = vector * lanes
            start = self._bias.load(channel, lanes) if self._bias else constant(0.0, w.dtype, lanes)
            accumulators = Registers(self._rows * tile.columns, w.dtype, lanes)
            for i in range(self._rows * tile.columns):
                accumulators[i] = start
            weights: dict[int, Expr] = {}
            if taps <= _RESIDENT_TAPS:
                filters = Registers(taps, w.dtype, lanes)
                for tap in range(taps):
                    filters[tap] = self._w.load((vector * taps + tap) * lanes, lanes)
                    weights[tap] = filters[tap]

            def weight(tap: int, vector: Expr = vector, weights: dict = weights) -> Expr:
                if tap in weights:
                    return weights[tap]
                return self._w.load((vector * taps + tap) * lanes, lanes)

            for i in self._input_rows():
                with self._input_row(image, first_row, i, corner, is_guarded) as (line, at):
                    for j, columns in uses.items():
                        # Under a guard a line begins at the image's first column.
                        pixel = j - skipped if corner is not None else first_column + j
                        loaded = Registers(1, w.dtype, lanes)
                        loaded[0] = line.load((at + pixel) * w.in_channels + channel, lanes)
                        for r, ky in self._readers(i):
                            for c, kx in columns:
                                n = r * tile.columns + c
                                product = loaded[0] * weight(ky * w.kernel[1] + kx)
                                accumulators[n] = accumulators[n] + product
            values = [
                self._bounded(accumulators[n], image, row, column, n, tile.columns, channel)
                for n in range(self._rows * tile.columns)
            ]
            finish(channel, values)

    def _bounded(
        self, value: Expr, image: Expr, row: Expr, column: Expr, n: int, columns: int, channel: Expr
    ) -> Expr:
        w = self._workload
        residual = None
        if self._residual is not None:
            line = (image * w.out_height + row + n // columns) * w.out_width
            pixel = line + column + n % columns
            residual = self._residual.load(pixel * w.out_channels + channel, self._lanes)
        return apply_epilogue(value, w.epilogue, self._lanes, w.dtype, residual)

    def _readers(self, in_row: int) -> list[tuple[int, int]]:
        """Return (output row, tap row) of all that read an input row of the tile."""
        w = self._workload
        return [
            (r, ky)
            for r in range(self._rows)
            for ky in range(w.kernel[0])
            if r * w.stride[0] + ky * w.dilation[0] == in_row
        ]

    def _uses(self, tile: WidthTile) -> dict[int, list[tuple[int, int]]]:
        """Return (output column, tap column) of all that read each input column on the image."""
        w = self._workload
        result: dict[int, list[tuple[int, int]]] = {}
        for c in range(tile.columns):
            for kx in range(w.kernel[1]):
                if tile.is_inside(w, c, kx):
                    column = c * w.stride[1] + kx * w.dilation[1]
                    result.setdefault(column, []).append((c, kx))
        return dict(sorted(result.items()))

    @contextmanager
    def _input_row(
        self, image: Expr, first_row: Expr, i: int, corner: Memory | None, is_guarded: bool
    ) -> Iterator[tuple[Memory, Expr]]:
        """Yield where input row `i` of the tile lies: memory, and the pixel it begins with."""
        w = self._workload
        if not is_guarded and corner is not None:
            yield corner, i * w.width
            return
        row = first_row + i
        with when(tirx.all(row >= 0, row < w.height)):
            yield self._x.at((image * w.height + row) * w.width * w.in_channels), 0
