"""Tiles of an integer matrix product, one class for each way of multiplying.

All return the same: an int32 vector for each row and each vector of neighbouring columns, exact
for any input. Weights lie panel by panel, in a panel step by step of the depth, in a step column by
column, `step` bytes each.

=========  =====================  ==============================================================
product    instruction            how it stays exact
=========  =====================  ==============================================================
sdot       SDOT by element        four products and a sum in 32 bits
smmla      SMMLA                  eight products and a sum in 32 bits
mlal       SMULL, SMLAL, SADALP   sums of 2 or 4 products in 16 bits, then 32; weights too large
                                  for that are split, and the rest is multiplied apart
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

__all__ = ["Panel", "Prefetch", "Product", "Remainder", "Totals", "make_product"]

Totals = Callable[[int, int], Expr]
"""Given a row of the tile and a vector of the panel, its int32 totals, bias included."""


@dataclass(frozen=True)
class Prefetch:
    """Weights that a later task reads, asked for step by step."""

    start: Expr
    """Where what this tile asks for begins."""
    stride: int
    """Bytes from one step to the next."""


@dataclass(frozen=True)
class Panel:
    """Columns that a tile covers."""

    start: Expr
    """The first of them."""
    w_base: Expr
    """Where its weights begin."""
    ahead: Prefetch | None = None
    """What to bring into the L2 cache meanwhile."""


@dataclass(frozen=True)
class Remainder:
    """Weights taken out of a product for its sums to fit into 16 bits; none where None.

    `weights` holds eight int8 for each entry. `places` holds, for each column and one more, the
    index of its first entry in `places` itself, and from `offset` on the place in a packed tile
    that each entry meets.
    """

    weights: Memory | None
    places: Memory | None
    offset: int


class Product(Protocol):
    """Multiplies one tile; `layout` is how it wants its rows."""

    @property
    def layout(self) -> RowLayout:
        """Where the bytes of its rows lie."""

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        """Write the product of `rows` rows of packed tile `tile` and a panel.

        `bias` is the int32 vector that each of the panel's vectors begins at.
        """


def make_product(plan: IntegerMatmulPlan, source: Rows, w: Memory, rest: Remainder) -> Product:
    """Return the product that a plan names, of rows like the source's."""
    depth = source.depth
    if plan.product == "sdot":
        return _DotByLane(plan, depth, w)
    if plan.product == "smmla":
        return _MatrixProduct(plan, depth, w)
    if plan.product == "mlal":
        return _WideningProduct(plan, depth, w, rest)
    return _Broadcast(plan, source, w)


def _beginning_at(value: Expr, count: int, lanes: int) -> Registers:
    registers = Registers(count, "int32", lanes)
    for index in range(count):
        registers[index] = value
    return registers


def _zeros(count: int, lanes: int) -> Registers:
    return _beginning_at(integer(0, "int32", lanes), count, lanes)


def _turns(first: int, count: int, unroll: int, body: Callable[[Expr], None]) -> None:
    """Write `count` turns from `first` on, `unroll` of them as one turn of a loop."""
    whole, rest = divmod(count, unroll)
    if whole:
        with T.serial(0, whole) as index:
            for turn in range(unroll):
                body(index * unroll + (first + turn))
    for turn in range(rest):
        body(first + whole * unroll + turn)


class _DotByLane:
    def __init__(self, plan: IntegerMatmulPlan, depth: int, w: Memory) -> None:
        self.layout: GroupedRows = GroupedRows(plan.row_tile, depth, 4)
        self._depth, self._w, self._unroll = depth, w, plan.unroll

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
        _turns(0, full, self._unroll, lambda index: block(index, 4))
        if rest:
            block(full, rest // 4)
        return lambda r, vector: accumulators[vector][r]


class _MatrixProduct:
    def __init__(self, plan: IntegerMatmulPlan, depth: int, w: Memory) -> None:
        self.layout: GroupedRows = GroupedRows(plan.row_tile, depth, 8)
        self._depth, self._w, self._unroll = depth, w, plan.unroll

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

        def block(index: Expr) -> None:
            step(index, 0)
            step(index, 1)

        full, rest = divmod(self._depth, 16)
        _turns(0, full, self._unroll, block)
        if rest:
            step(full, 0)

        def total(r: int, vector: int) -> Expr:
            left, right = accumulators[2 * vector][r // 2], accumulators[2 * vector + 1][r // 2]
            low = 2 * (r % 2)
            together = tirx.Shuffle([left, right], [low, low + 1, low + 4, low + 5])
            return together + bias[vector]

        return total


class _WideningProduct:
    """Rows of four columns: a total has four partial sums, added up at the end.

    What `PackedWeights` has taken from the weights, so that sums fit into 16 bits, is added last.
    """

    def __init__(self, plan: IntegerMatmulPlan, depth: int, w: Memory, rest: Remainder) -> None:
        self.layout: ByteRows = ByteRows(plan.row_tile, depth, plan.step)
        self._w, self._sums, self._rest = w, plan.sums, rest
        self._unroll = plan.unroll

    def tile(
        self, packed: Memory, tile: Expr, rows: int, bias: Sequence[Expr], panel: Panel
    ) -> Totals:
        columns, w_base = 4 * len(bias), panel.w_base
        layout = self.layout
        accumulators = [Registers(rows, "int32", 4) for _ in range(columns)]
        is_begun = False

        def chunk(index: Expr, size: int) -> None:
            halves = size // 16
            loaded = [Registers(halves, "int8", 16) for _ in range(rows)]
            base = tile * layout.tile + index * (layout.tile_rows * layout.chunk)
            for r in range(rows):
                for half in range(halves):
                    loaded[r][half] = packed.load(base + r * layout.chunk + half * 16, 16)
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
                    total = accumulators[column][r] if is_begun else None
                    for first in range(0, len(products), self._sums):
                        together = products[first]
                        for product in products[first + 1 : first + self._sums]:
                            together = together + product
                        pairs = aarch64.add_pairs(together)
                        total = pairs if total is None else total + pairs
                    accumulators[column][r] = total

        # The first chunk begins the sums, which saves setting them to 0.
        if layout.full:
            chunk(0, layout.chunk)
            is_begun = True
        turns = max(0, layout.full - 1)
        _turns(1, turns, self._unroll, lambda index: chunk(index, layout.chunk))
        if layout.rest:
            chunk(layout.full, 16)
        if self._rest.weights is not None and self._rest.places is not None:
            for column in range(columns):
                self._add_rest(packed, tile, panel, column, accumulators[column], rows)

        def total(r: int, vector: int) -> Expr:
            four = [accumulators[4 * vector + column][r] for column in range(4)]
            left = aarch64.pairwise_sum(four[0], four[1])
            right = aarch64.pairwise_sum(four[2], four[3])
            return aarch64.pairwise_sum(left, right) + bias[vector]

        return total

    def _add_rest(
        self,
        packed: Memory,
        tile: Expr,
        panel: Panel,
        column: int,
        accumulators: Registers,
        rows: int,
    ) -> None:
        """Add what was taken from one column: eight weights at a time, few of them."""
        weights, places = self._rest.weights, self._rest.places
        assert weights is not None
        assert places is not None
        number = panel.start + column
        first, last = places.load(number), places.load(number + 1)
        with T.serial(0, last - first) as index:
            entry = first + index
            eight = Registers(1, "int8", 8)
            eight[0] = weights.load((entry - self._rest.offset) * 8, 8)
            base = tile * self.layout.tile + places.load(entry)
            for r in range(rows):
                value = packed.load(base + r * self.layout.chunk, 8)
                product = aarch64.product_of_eight(value, eight[0])
                accumulators[r] = accumulators[r] + aarch64.add_pairs(product)


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

        def turn(index: Expr) -> None:
            if panel.ahead is not None:
                self._w.prefetch(panel.ahead.start + index * panel.ahead.stride)
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

        _turns(0, self._depth // step, plan.unroll, turn)
        return lambda r, vector: accumulators[vector][r]


_WEIGHTS = {"vnni": "int8", "pairs": "int16", "plain": "int8"}
