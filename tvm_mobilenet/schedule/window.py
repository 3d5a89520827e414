"""Sliding windows over an image: which taps fall on padding, and where that is known in advance.

Padding is never stored. Along the width the tiles at the two borders are written apart with their
taps left out; along the height a tap that may fall outside is guarded by one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr, Memory, when
from tvm_mobilenet.schedule.workload import ConvWorkload

__all__ = ["RowSource", "WidthTile", "each_width_tile", "row_guard", "width_tiles"]


@dataclass(frozen=True)
class RowSource:
    """Rows of pixels (NHWC) that a window slides over: a tensor, or the latest rows of one."""

    memory: Memory
    ring: int = 0
    """How many rows the memory holds, row r in the place of r modulo them; 0 for all rows of all
    images."""

    def line(self, workload: ConvWorkload, image: Expr, row: Expr) -> Expr:
        """Return the first pixel of an input row."""
        if self.ring:
            return (row % self.ring if self.ring > 1 else 0) * workload.width
        return (image * workload.height + row) * workload.width


@dataclass(frozen=True)
class WidthTile:
    """One or several tiles of output columns that need the same code."""

    start: int
    """First output column of the first tile."""
    columns: int
    """Output columns of one tile."""
    repeat: int
    """Number of tiles, each `columns` further right."""
    is_border: bool
    """True where some tap of some column falls on padding; then `repeat` is 1."""

    def is_inside(self, workload: ConvWorkload, column: int, tap: int) -> bool:
        """Tell whether tap `tap` of the tile's `column` falls on the image."""
        if not self.is_border:
            return True
        x = (self.start + column) * workload.stride[1] - workload.padding[1]
        return 0 <= x + tap * workload.dilation[1] < workload.width


def width_tiles(workload: ConvWorkload, columns: int) -> list[WidthTile]:
    """Cut the output's width into tiles; the last one is moved back to end at the border."""
    total = workload.out_width
    columns = min(columns, total)
    starts = list(range(0, total - columns + 1, columns))
    if starts[-1] + columns < total:
        starts.append(total - columns)
    tiles: list[WidthTile] = []
    for start in starts:
        first = start * workload.stride[1] - workload.padding[1]
        last = (start + columns - 1) * workload.stride[1] - workload.padding[1]
        last += (workload.kernel[1] - 1) * workload.dilation[1]
        border = first < 0 or last >= workload.width
        previous = tiles[-1] if tiles else None
        if (
            previous is not None
            and not border
            and not previous.is_border
            and previous.start + previous.repeat * columns == start
        ):
            tiles[-1] = WidthTile(previous.start, columns, previous.repeat + 1, False)
        else:
            tiles.append(WidthTile(start, columns, 1, border))
    return tiles


@contextmanager
def each_width_tile(tile: WidthTile) -> Iterator[Expr]:
    """Write a loop over the tiles of one kind; yields the first output column of each."""
    if tile.repeat == 1:
        yield tile.start
        return
    with T.serial(0, tile.repeat) as index:
        yield tile.start + index * tile.columns


@contextmanager
def row_guard(workload: ConvWorkload, out_row: Expr, tap: int) -> Iterator[Expr]:
    """Write what is inside for rows whose tap `tap` falls on the image; yields the input row."""
    offset = tap * workload.dilation[0] - workload.padding[0]
    row = out_row * workload.stride[0] + offset
    condition = None
    if offset < 0:
        condition = row >= 0
    if (workload.out_height - 1) * workload.stride[0] + offset >= workload.height:
        below = row < workload.height
        condition = below if condition is None else tirx.all(condition, below)
    with when(condition):
        yield row
