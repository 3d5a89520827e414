"""The loops over the tiles and panels of an integer product, and the end of each tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import T
from tvm_mobilenet.schedule.emit import Expr, KernelWriter, Memory, task_loop, when
from tvm_mobilenet.schedule.integer.products import Panel, Prefetch, Totals
from tvm_mobilenet.schedule.integer.requantize import store_rows
from tvm_mobilenet.schedule.integer.rows import CHUNK

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan
    from tvm_mobilenet.schedule.integer.workload import IntegerMatmulWorkload

__all__ = ["Tiles"]


class Tiles:
    """Writes all tiles of a product.

    Args:
        kernel: the kernel that is written.
        workload: what it computes.
        plan: how.
        multiply: writes the product of one tile and one panel; see `Product.tile`.
    """

    def __init__(
        self,
        kernel: KernelWriter,
        workload: IntegerMatmulWorkload,
        plan: IntegerMatmulPlan,
        multiply: Callable[..., Totals],
    ) -> None:
        self._kernel, self._workload, self._plan = kernel, workload, plan
        self._multiply = multiply
        self._panels = plan.panels(workload.columns)
        self._full_panels = sum(
            count == plan.column_vectors and first + self._width <= workload.columns
            for first, count in self._panels
        )
        self._full_tiles, self._rest = divmod(workload.rows, plan.row_tile)
        self._depth_bytes = _padded_depth(workload.depth, plan)

    def write(self, packed: Memory, *, by_row: bool) -> None:
        """Write all tiles. `by_row`: the product finds a tile by its first row, not its number."""
        self._packed, self._by_row = packed, by_row
        if self._plan.outer == "rows":
            self._rows_outside()
        else:
            self._columns_outside()

    def _rows_outside(self) -> None:
        """A task takes a block of whole tiles, the last one those rows that fill none."""
        full, rest, block = self._full_tiles, self._rest, self._plan.block
        height = self._plan.row_tile
        tasks = math.ceil(full / block)

        def panels_of(first: Expr, tiles: Expr, rows: int) -> None:
            def panel(number: Expr, vectors: int, valid: int) -> None:
                _each(tiles, lambda i: self._tile(first + i, rows, number, vectors, valid))

            _each(self._full_panels, lambda p: panel(p, self._plan.column_vectors, self._width))
            for number in range(self._full_panels, len(self._panels)):
                start, vectors = self._panels[number]
                panel(number, vectors, self._workload.columns - start)

        with task_loop(tasks + (1 if rest else 0), self._plan.is_parallel) as task:
            _either(
                task < tasks if tasks and rest else bool(tasks),
                lambda: panels_of(task * block, _count(task, block, full), height),
                lambda: panels_of(full, 1, rest),
            )

    def _columns_outside(self) -> None:
        """A task takes a block of whole panels, or one panel that is not whole."""
        full, block = self._full_panels, self._plan.block
        tasks = math.ceil(full / block)

        def tiles_of(first: Expr, panels: Expr, vectors: int, valid: int) -> None:
            def tile(number: Expr, rows: int) -> None:
                def part(index: Expr) -> None:
                    self._tile(number, rows, first + index, vectors, valid, fetches=True)

                _each(panels, part)

            _each(self._full_tiles, lambda t: tile(t, self._plan.row_tile))
            if self._rest:
                tile(self._full_tiles, self._rest)

        others = range(full, len(self._panels))
        with task_loop(tasks + len(others), self._plan.is_parallel) as task:
            for number in others:
                start, vectors = self._panels[number]
                valid = self._workload.columns - start
                with when(task == tasks + number - full if tasks + len(others) > 1 else None):
                    tiles_of(number, 1, vectors, valid)
            if full:
                with when(task < tasks if others else None):
                    count = _count(task, block, full)
                    tiles_of(task * block, count, self._plan.column_vectors, self._width)

    @property
    def _width(self) -> int:
        return self._plan.column_vectors * self._plan.lanes

    def _ahead(self, tile: Expr, panel: Expr) -> Prefetch:
        """Return the share of the panel after the task's own that a tile asks for."""
        plan, tiles = self._plan, self._full_tiles + (1 if self._rest else 0)
        steps = self._depth_bytes // plan.step
        panel_bytes = self._width * self._depth_bytes
        stride = max(8, 1 << math.ceil(math.log2(panel_bytes / (tiles * steps))))
        ahead = (panel + plan.block) * panel_bytes + tile * (steps * stride)
        return Prefetch(ahead, stride)

    def _tile(
        self,
        tile: Expr,
        rows: int,
        panel: Expr,
        vectors: int,
        valid: int,
        *,
        fetches: bool = False,
    ) -> None:
        plan, kernel = self._plan, self._kernel
        row, start = tile * plan.row_tile, panel * self._width

        def columns(name: str) -> list[Expr]:
            lanes = plan.lanes
            return [kernel[name].load(start + lanes * v, lanes) for v in range(vectors)]

        ahead = self._ahead(tile, panel) if fetches and plan.prefetch else None
        where = Panel(start, start * self._depth_bytes, ahead)
        place = row if self._by_row else tile
        totals = self._multiply(self._packed, place, rows, columns("bias"), where)
        scales = columns("scale")
        store_rows(
            kernel["y"],
            [(row + r) * self._workload.columns + start for r in range(rows)],
            [[totals(r, vector) for vector in range(vectors)] for r in range(rows)],
            scales,
            plan.lanes,
            valid,
            self._workload.requantize,
            plan.arithmetic,
        )


def _each(count: Expr, body: Callable[[Expr], None]) -> None:
    """Write `body` for each index below `count`; no loop for one, nothing for none."""
    if isinstance(count, int) and count <= 1:
        if count:
            body(0)
        return
    with T.serial(0, count) as index:
        body(index)


def _either(condition: Expr, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Write one of the two where that is known, or else a choice."""
    if isinstance(condition, bool):
        (first if condition else second)()
        return
    with T.If(condition):
        with T.Then():
            first()
        with T.Else():
            second()


def _count(task: Expr, block: int, items: int) -> Expr:
    """Return how many of `items` a task has that takes a block of them."""
    return block if items % block == 0 else T.min(block, items - task * block)


def _padded_depth(depth: int, plan: IntegerMatmulPlan) -> int:
    """Return the bytes of one column of packed weights."""
    unit = CHUNK if plan.product == "mlal" else plan.step
    return math.ceil(depth / unit) * unit
