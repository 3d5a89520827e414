"""Matrix products on processors that multiply by a lane: rows packed in groups of four.

Where an instruction multiplies a vector by one lane of another (`fmla v.4s, v.4s, v.s[i]`), four
rows of the left operand belong into one vector: a step of the depth then loads a register for four
rows, and two steps load a pair. The rows are laid out tile by tile for that, either by the
depthwise convolution that computes them or by a pass over a tensor. Both transpose with the
interleaving store (`st4`), which costs no more than a plain one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Registers,
    apply_epilogue,
    by_lane,
    call_llvm,
    constant,
)
from tvm_mobilenet.schedule.neon_panel import panel_code
from tvm_mobilenet.schedule.neon_tile import GROUP
from tvm_mobilenet.schedule.register_tile import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm_mobilenet.schedule.matmul import MatmulPlan
    from tvm_mobilenet.schedule.workload import MatmulWorkload

__all__ = ["GROUP", "PackedMatmulWriter", "RowPacking", "can_pack", "depth_step"]

_DEPTH_STEPS = (16, 12, 8, 4)


def can_pack(depth: int, lanes: int = 4) -> bool:
    """Tell whether rows of that depth can be packed in vectors of `lanes` elements."""
    return depth % lanes == 0


def depth_step(depth: int, lanes: int = 4) -> int:
    """Return how many steps of the depth to write out, so that the loop itself costs little.

    More than 16 and the weights are out of reach of a load of pairs; and without a loop at all
    LLVM's scheduler mixes neighbouring tiles, and spills.
    """
    steps = (step for step in _DEPTH_STEPS if step % lanes == 0)
    return next((step for step in steps if depth % step == 0 and depth >= 2 * step), lanes)


@dataclass(frozen=True)
class RowPacking:
    """Where element (row, k) of a packed matrix lies.

    Tiles of `rows` rows follow each other; in a tile, blocks of as many steps of the depth as a
    vector has lanes; in a block, groups of four rows; in a group, the steps, and in a step the four
    rows. The last group of a tile is padded, and so is the last tile.
    """

    rows: int
    """Rows of one tile."""
    depth: int
    lanes: int = 4
    """Elements of a vector: one step of four rows in float32, two in float16."""

    @property
    def groups(self) -> int:
        """Groups of four rows in a tile."""
        return math.ceil(self.rows / GROUP)

    @property
    def block(self) -> int:
        """Elements from one block of steps to the next."""
        return self.groups * GROUP * self.lanes

    @property
    def tile(self) -> int:
        """Elements from one tile to the next."""
        return self.depth // self.lanes * self.block

    def elements(self, rows: int) -> int:
        """Return the elements that `rows` rows take."""
        return math.ceil(rows / self.rows) * self.tile

    def offset(self, row: Expr) -> Expr:
        """Return where the group that begins with `row` begins, at step 0 of the depth."""
        if self.rows <= GROUP:
            return row // self.rows * self.tile
        return row // self.rows * self.tile + row % self.rows // GROUP * (GROUP * self.lanes)

    def store(self, packed: Memory, offset: Expr, rows: Sequence[Expr]) -> None:
        """Store a block of up to four rows; rows that are missing hold what the last one does.

        `rows` are vectors of neighbouring steps.
        """
        padded = [*rows, *[rows[-1]] * (GROUP - len(rows))]
        order = [row * self.lanes + step for step in range(self.lanes) for row in range(GROUP)]
        packed.store(offset, tirx.Shuffle(padded, order), GROUP * self.lanes)

    def pack(self, x: Memory, x_row: Expr, packed: Memory, tile: Expr, rows: int) -> None:
        """Pack one tile of `rows` rows, from `x_row` of the plain matrix `x` on."""
        with T.serial(0, self.depth // self.lanes) as block:
            for first in range(0, rows, GROUP):
                count = min(GROUP, rows - first)
                loaded = Registers(count, x.dtype, self.lanes)
                for r in range(count):
                    row = (x_row + first + r) * self.depth
                    loaded[r] = x.load(row + block * self.lanes, self.lanes)
                at = tile * self.tile + block * self.block + first * self.lanes
                self.store(packed, at, [loaded[r] for r in range(count)])


class PackedMatmulWriter:
    """Writes tiles of a matrix product whose left operand is packed.

    The kernel has `w`, `bias`, `residual` and `y`.
    """

    def __init__(self, kernel: KernelWriter, workload: MatmulWorkload, plan: MatmulPlan) -> None:
        self._kernel = kernel
        self._workload = workload
        self._plan = plan
        self.packing = RowPacking(plan.row_tile, workload.depth, plan.lanes)
        panels = plan.panels(workload.columns)
        self._full = [panel for panel in panels if panel.vectors == panels[0].vectors]
        self._tail = panels[len(self._full) :]

    @property
    def panels(self) -> int:
        """Number of panels, each a task of its own where the columns are outside."""
        return len(self._full) + len(self._tail)

    def all_panels(self, packed: Memory, y_row: Expr, rows: int) -> None:
        """Write `rows` packed rows, to `y_row` of the output on, panel by panel."""
        with T.serial(0, len(self._full)) as index:
            self._rows_of(packed, y_row, rows, self._full[0], index * self._full[0].width)
        for panel in self._tail:
            self._rows_of(packed, y_row, rows, panel, panel.start)

    def one_panel(self, index: Expr, packed: Memory, rows: int) -> None:
        """Write all rows of panel `index`."""
        if not self._tail:
            self._rows_of(packed, 0, rows, self._full[0], index * self._full[0].width)
            return
        with T.If(index < len(self._full)):
            with T.Then():
                self._rows_of(packed, 0, rows, self._full[0], index * self._full[0].width)
            with T.Else():
                for panel in self._tail:
                    self._rows_of(packed, 0, rows, panel, panel.start)

    def one_tile(self, index: Expr, packed: Memory, rows: int) -> None:
        """Write all columns of packed tile `index` of a matrix of `rows` rows."""
        height = self.packing.rows
        full, rest = divmod(rows, height)

        def columns(count: int) -> None:
            with T.serial(0, len(self._full)) as panel:
                start = panel * self._full[0].width
                self._tiles_of(packed, index, index * height, count, self._full[0], start)
            for tail in self._tail:
                self._tiles_of(packed, index, index * height, count, tail, tail.start)

        if not rest:
            columns(height)
            return
        with T.If(index < full):
            with T.Then():
                columns(height)
            with T.Else():
                columns(rest)

    def _tiles_of(
        self, packed: Memory, tile: Expr, y_row: Expr, rows: int, panel: Panel, start: Expr
    ) -> None:
        """Write `rows` rows of one panel, from packed tile `tile` on."""
        if self._plan.in_assembly and self._is_full(panel):
            self._assembled(packed, tile, y_row, rows, panel, start)
        else:
            assert rows <= self.packing.rows
            self.tile(packed, tile, y_row, rows, panel, start)

    def _is_full(self, panel: Panel) -> bool:
        """Tell whether a panel has full vectors alone."""
        return all(lanes == self._plan.lanes for _, lanes in panel.vectors)

    def _assembled(
        self, packed: Memory, tile: Expr, y_row: Expr, rows: int, panel: Panel, start: Expr
    ) -> None:
        w, kernel = self._workload, self._kernel
        code = panel_code(
            rows=rows,
            tile_rows=self.packing.rows,
            vectors=len(panel.vectors),
            depth=w.depth,
            step=self._plan.depth_step,
            columns=w.columns,
            epilogue=w.epilogue,
            dtype=w.dtype,
        )
        output = y_row * w.columns + start
        addresses = [
            (packed, tile * self.packing.tile),
            (kernel["w"], start * w.depth),
            (kernel["y"], output),
        ]
        if w.epilogue.bias:
            addresses.append((kernel["bias"], start))
        if w.epilogue.residual:
            addresses.append((kernel["residual"], output))
        call_llvm(code.name, code.text, addresses)

    def _rows_of(self, packed: Memory, y_row: Expr, rows: int, panel: Panel, start: Expr) -> None:
        if self._plan.in_assembly and self._is_full(panel):
            self._assembled(packed, 0, y_row, rows, panel, start)
            return
        full, rest = divmod(rows, self.packing.rows)
        if full:
            with T.serial(0, full) as tile:
                row = y_row + tile * self.packing.rows
                self.tile(packed, tile, row, self.packing.rows, panel, start)
        if rest:
            self.tile(packed, full, y_row + full * self.packing.rows, rest, panel, start)

    def tile(
        self, packed: Memory, tile: Expr, y_row: Expr, rows: int, panel: Panel, start: Expr
    ) -> None:
        """Write the first `rows` rows of packed tile `tile`, columns from `start`."""
        dtype, columns = self._workload.dtype, self._workload.columns
        bias, residual = self._kernel.get("bias"), self._kernel.get("residual")
        accumulators = [Registers(rows, dtype, lanes) for _, lanes in panel.vectors]
        for vector, (offset, lanes) in enumerate(panel.vectors):
            first = bias.load(start + offset, lanes) if bias else constant(0.0, dtype, lanes)
            for r in range(rows):
                accumulators[vector][r] = first
        self._reduce(packed, tile, panel, start, accumulators, rows)
        for r in range(rows):
            for vector, (offset, lanes) in enumerate(panel.vectors):
                index = (y_row + r) * columns + start + offset
                value = apply_epilogue(
                    accumulators[vector][r],
                    self._workload.epilogue,
                    lanes,
                    dtype,
                    residual.load(index, lanes) if residual else None,
                )
                self._kernel["y"].store(index, value, lanes)

    def _reduce(
        self,
        packed: Memory,
        tile: Expr,
        panel: Panel,
        start: Expr,
        accumulators: list[Registers],
        rows: int,
    ) -> None:
        depth, step = self._workload.depth, self._plan.depth_step
        groups = math.ceil(rows / GROUP)
        w, dtype, width = self._kernel["w"], self._workload.dtype, self._plan.lanes
        # Steps of four rows that one vector holds.
        held = width // GROUP
        with T.serial(0, depth // step) as outer:
            x_base = tile * self.packing.tile + outer * (step // width * self.packing.block)
            w_base = start * depth + outer * (step * panel.width)
            for k in range(0, step, 2 * held):
                # Two vectors of a group at a time: they are neighbours, and load as one.
                loaded = [Registers(groups, dtype, width) for _ in range(2)]
                for group in range(groups):
                    for one in range(2):
                        at = k // width * self.packing.block + group * GROUP * width
                        at += (k + one * held) % width * GROUP
                        loaded[one][group] = packed.load(x_base + at, width)
                for ahead in range(2 * held):
                    one, first_lane = ahead // held, ahead % held * GROUP
                    for vector, (offset, lanes) in enumerate(panel.vectors):
                        at = (k + ahead) * panel.width + offset
                        weights = w.load(w_base + at, lanes)
                        for r in range(rows):
                            lane = first_lane + r % GROUP
                            spread = partial(by_lane, loaded[one][r // GROUP], lane)
                            product = spread(lanes) * weights
                            accumulators[vector][r] = accumulators[vector][r] + product
