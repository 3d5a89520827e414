"""Tiles of an integer matrix product, one class for each way of multiplying.

All return the same: an int32 vector for each row and each vector of neighbouring columns, exact
for any input. Weights lie panel by panel, in a panel step by step of the depth, in a step column by
column, `step` bytes each.

=========  =====================  ==============================================================
product    instruction            how it stays exact
=========  =====================  ==============================================================
sdot       SDOT by element        four products and a sum in 32 bits
smmla      SMMLA                  eight products and a sum in 32 bits
mlal       SMULL, SMLAL, SADALP   sums of 2 or 4 products in 16 bits, where the weights prove that
                                  they fit; then 32 bits
vnni       VPDPBUSD               as SDOT; unlike VPMADDUBSW it saturates nowhere
pairs      VPMADDWD               bytes widened to 16 bits, sums of two products in 32. VPMADDUBSW
                                  would save a quarter of the instructions, and saturate
plain      what LLVM chooses      32-bit products
=========  =====================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr, Memory, Registers
from tvm_mobilenet.schedule.integer.rows import ByteRows, GroupedRows, PlainRows, RowLayout, Rows
from tvm_mobilenet.schedule.intrinsics import aarch64, x86
from tvm_mobilenet.schedule.intrinsics.vectors import integer, same_bits, widen

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan

__all__ = ["Panel", "Product", "Totals", "make_product"]

Totals = Callable[[int, int], Expr]
"""Given a row of the tile and a vector of the panel, its int32 totals, bias included."""


@dataclass(frozen=True)
class Panel:
    """Columns that a tile covers."""

    number: Expr
    w_base: Expr
    """Where its weights begin."""


class Product(Protocol):
    """Multiplies one tile; `layout` is how it wants its rows."""

    layout: RowLayout

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        """Write the product of `rows` rows of packed tile `tile` and a panel.

        `bias` is the int32 vector that each of the panel's vectors begins at.
        """


def make_product(
    plan: IntegerMatmulPlan, source: Rows, w: Memory, segments: Memory | None
) -> Product:
    """Return the product that a plan names, of rows like the source's."""
    depth = source.depth
    if plan.product == "sdot":
        return _DotByLane(plan, depth, w)
    if plan.product == "smmla":
        return _MatrixProduct(plan, depth, w)
    if plan.product == "mlal":
        return _WideningProduct(plan, depth, w, segments)
    return _Broadcast(plan, source, w)


def _beginning_at(value: Expr, count: int, lanes: int) -> Registers:
    registers = Registers(count, "int32", lanes)
    for index in range(count):
        registers[index] = value
    return registers


def _zeros(count: int, lanes: int) -> Registers:
    return _beginning_at(integer(0, "int32", lanes), count, lanes)


class _DotByLane:
    def __init__(self, plan: IntegerMatmulPlan, depth: int, w: Memory) -> None:
        self.layout: GroupedRows = GroupedRows(plan.row_tile, depth, 4)
        self._depth, self._w = depth, w

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        vectors, w_base = len(bias), panel.w_base
        accumulators = [_beginning_at(start, rows, 4) for start in bias]
        groups = math.ceil(rows / 4)

        def block(index: Expr, steps: int) -> None:
            for first in range(0, steps, 2):
                ahead = range(first, min(first + 2, steps))
                # Two steps at a time: their vectors of a group are neighbours, and load as one.
                loaded = {step: Registers(groups, "int32", 4) for step in ahead}
                for group in range(groups):
                    for step in ahead:
                        at = self.layout.at(tile, index, group, step)
                        loaded[step][group] = packed.load(at, 4)
                for step in ahead:
                    for vector in range(vectors):
                        at = w_base + (index * 4 + step) * (16 * vectors) + 16 * vector
                        weights = self._w.load(at, 16)
                        for r in range(rows):
                            values = same_bits(loaded[step][r // 4], "int8x16")
                            accumulators[vector][r] = aarch64.dot_by_lane(
                                accumulators[vector][r], weights, values, r % 4
                            )

        full, rest = divmod(self._depth, 16)
        if full:
            with T.serial(0, full) as index:
                block(index, 4)
        if rest:
            block(full, rest // 4)
        return lambda r, vector: accumulators[vector][r]


class _MatrixProduct:
    def __init__(self, plan: IntegerMatmulPlan, depth: int, w: Memory) -> None:
        self.layout: GroupedRows = GroupedRows(plan.row_tile, depth, 8)
        self._depth, self._w = depth, w

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        vectors, w_base = len(bias), panel.w_base
        pairs, columns = math.ceil(rows / 2), 2 * vectors
        accumulators = [_zeros(pairs, 4) for _ in range(columns)]

        def step(index: Expr, half: int) -> None:
            loaded = Registers(pairs, "int32", 4)
            for pair in range(pairs):
                loaded[pair] = packed.load(self.layout.at(tile, index, pair, half), 4)
            for column in range(columns):
                at = w_base + (index * 2 + half) * (32 * vectors) + 16 * column
                weights = self._w.load(at, 16)
                for pair in range(pairs):
                    accumulators[column][pair] = aarch64.matrix_product(
                        accumulators[column][pair], same_bits(loaded[pair], "int8x16"), weights
                    )

        full, rest = divmod(self._depth, 16)
        if full:
            with T.serial(0, full) as index:
                step(index, 0)
                step(index, 1)
        if rest:
            step(full, 0)

        def total(r: int, vector: int) -> Expr:
            left, right = accumulators[2 * vector][r // 2], accumulators[2 * vector + 1][r // 2]
            low = 2 * (r % 2)
            together = tirx.Shuffle([left, right], [low, low + 1, low + 4, low + 5])
            return together + bias[vector]

        return total


class _WideningProduct:
    """Rows of four columns: a total has four partial sums, added up at the end."""

    def __init__(
        self, plan: IntegerMatmulPlan, depth: int, w: Memory, segments: Memory | None
    ) -> None:
        self.layout: ByteRows = ByteRows(plan.row_tile, depth, 32 if plan.sums == 4 else 16)
        self._w, self._sums, self._segments = w, plan.sums, segments

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        columns, w_base = 4 * len(bias), panel.w_base
        layout = self.layout
        accumulators = [_zeros(rows, 4) for _ in range(columns)]

        def chunk(index: Expr, size: int, sums: int) -> None:
            halves = size // 16
            loaded = [Registers(halves, "int8", 16) for _ in range(rows)]
            base = tile * layout.tile + index * (layout.tile_rows * layout.chunk)
            for r in range(rows):
                for half in range(halves):
                    loaded[r][half] = packed.load(base + r * size + half * 16, 16)
            for column in range(columns):
                at = w_base + index * (columns * layout.chunk) + column * size
                weights = Registers(halves, "int8", 16)
                for half in range(halves):
                    weights[half] = self._w.load(at + half * 16, 16)
                for r in range(rows):
                    products = [
                        aarch64.widening_product(loaded[r][half], weights[half], eight)
                        for half in range(halves)
                        for eight in range(2)
                    ]
                    for first in range(0, len(products), sums):
                        together = products[first]
                        for product in products[first + 1 : first + sums]:
                            together = together + product
                        accumulators[column][r] = accumulators[column][r] + aarch64.add_pairs(
                            together
                        )

        if self._segments is None:
            if layout.full:
                with T.serial(0, layout.full) as index:
                    chunk(index, layout.chunk, self._sums)
        else:
            table = self._segments
            first, last = table.load(panel.number), table.load(panel.number + 1)
            with T.serial(0, (last - first) // 3) as number:
                entry = first + number * 3
                start, narrow, wide = (table.load(entry + i) for i in range(3))
                with T.serial(0, narrow) as index:
                    chunk(start + index, layout.chunk, self._sums)
                with T.serial(0, wide) as index:
                    chunk(start + narrow + index, layout.chunk, 2)
        if layout.rest:
            chunk(layout.full, 16, min(self._sums, 2))

        def total(r: int, vector: int) -> Expr:
            four = [accumulators[4 * vector + column][r] for column in range(4)]
            left = aarch64.pairwise_sum(four[0], four[1])
            right = aarch64.pairwise_sum(four[2], four[3])
            return aarch64.pairwise_sum(left, right) + bias[vector]

        return total


class _Broadcast:
    """A few bytes of a row in every lane, times weights that lie as the lanes do."""

    def __init__(self, plan: IntegerMatmulPlan, source: Rows, w: Memory) -> None:
        have = source.memory.dtype
        wanted = {"vnni": "uint8", "pairs": "int16"}.get(plan.product, have)
        stride = source.stride if wanted == have else source.depth
        self.layout: PlainRows = PlainRows(stride, wanted)
        self._plan, self._depth, self._w = plan, source.depth, w

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        vectors, w_base = len(bias), panel.w_base
        plan, lanes = self._plan, self._plan.lanes
        step = plan.step
        accumulators = [_beginning_at(start, rows, lanes) for start in bias]

        def multiply(total: Expr, values: Expr, weights: Expr) -> Expr:
            if plan.product == "vnni":
                return x86.dot(total, x86.spread(values, "uint8", 4 * lanes), weights, lanes)
            if plan.product == "pairs":
                pairs = x86.spread(values, "int16", 2 * lanes)
                return total + x86.product_of_pairs(pairs, weights, lanes)
            spread = tirx.Broadcast(tirx.Cast("int32", values), lanes)
            return total + spread * widen(weights, "int32", lanes)

        with T.serial(0, self._depth // step) as index:
            loaded = Registers(vectors, _WEIGHTS[plan.product], step * lanes)
            for vector in range(vectors):
                at = w_base + (index * vectors + vector) * (step * lanes)
                weights = self._w.load(at, step * lanes)
                if plan.product == "pairs":
                    weights = widen(weights, "int16", step * lanes)
                loaded[vector] = weights
            for r in range(rows):
                values = packed.load((tile + r) * self.layout.stride + index * step, step)
                for vector in range(vectors):
                    accumulators[vector][r] = multiply(
                        accumulators[vector][r], values, loaded[vector]
                    )
        return lambda r, vector: accumulators[vector][r]


_WEIGHTS = {"vnni": "int8", "pairs": "int16", "plain": "int8"}
