"""Sliding windows of a work-item: a run of output columns, and which taps may fall on padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from tvm_mobilenet._tvm import tirx
from tvm_mobilenet.schedule.emit import Expr, when
from tvm_mobilenet.schedule.mali.emit import tile_start
from tvm_mobilenet.schedule.workload import ConvWorkload

__all__ = ["column_tiles", "inside_column", "inside_row", "taps_by_column", "tile_place"]


def column_tiles(workload: ConvWorkload, columns: int) -> int:
    """Return how many tiles of `columns` cover the output's width."""
    return math.ceil(workload.out_width / columns)


def tile_place(workload: ConvWorkload, index: Expr, columns: int) -> tuple[Expr, Expr]:
    """Return output row and first column of a tile, counted along the rows."""
    tiles = column_tiles(workload, columns)
    if tiles == 1:
        return index, 0
    return index // tiles, tile_start(index % tiles, columns, workload.out_width)


def taps_by_column(workload: ConvWorkload, columns: int) -> dict[int, list[tuple[int, int]]]:
    """Return (column of the tile, tap) for each input column that a tile reads, as an offset.

    Each input pixel is loaded once for all the outputs that it goes into.
    """
    taps: dict[int, list[tuple[int, int]]] = {}
    for column in range(columns):
        for tap in range(workload.kernel[1]):
            offset = column * workload.stride[1] + tap * workload.dilation[1]
            taps.setdefault(offset, []).append((column, tap))
    return dict(sorted(taps.items()))


@contextmanager
def inside_row(workload: ConvWorkload, out_row: Expr, tap: Expr) -> Iterator[Expr]:
    """Write what is inside for rows whose tap falls on the image; yields the input row."""
    row = out_row * workload.stride[0] + tap * workload.dilation[0] - workload.padding[0]
    last = (workload.out_height - 1) * workload.stride[0] - workload.padding[0]
    last += (workload.kernel[0] - 1) * workload.dilation[0]
    with _inside(row, workload.padding[0] > 0, last >= workload.height, workload.height):
        yield row


@contextmanager
def inside_column(
    workload: ConvWorkload, first: Expr, offset: Expr, columns: int
) -> Iterator[Expr]:
    """Write what is inside if input column `offset` of a tile is on the image; yields the column.

    `first` is the tile's first output column; `offset` an integer, or an expression of which
    nothing is known.
    """
    column = first * workload.stride[1] + offset - workload.padding[1]
    known = offset if isinstance(offset, int) else None
    below = workload.padding[1] > 0 and (known is None or known < workload.padding[1])
    furthest = (workload.out_width - columns) * workload.stride[1] - workload.padding[1]
    if known is None:
        furthest += (columns - 1) * workload.stride[1]
        furthest += (workload.kernel[1] - 1) * workload.dilation[1]
    else:
        furthest += known
    with _inside(column, below, furthest >= workload.width, workload.width):
        yield column


@contextmanager
def _inside(position: Expr, below: bool, above: bool, extent: int) -> Iterator[None]:
    conditions = [position >= 0] if below else []
    if above:
        conditions.append(position < extent)
    with when(tirx.all(*conditions) if conditions else None):
        yield
