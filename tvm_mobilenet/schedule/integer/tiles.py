"""Register tiles of integer products: what each needs, and which the register file holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.isa import ProductName
    from tvm_mobilenet.targets import Cpu

__all__ = ["product_tiles", "tile_registers"]

_MOST_ROWS = 16
_MOST_VECTORS = 6
_UNROLLED_DEPTH = 32
"""Up to that depth LLVM writes the loop over it out, mixes neighbouring tiles, and spills where the
registers are not fewer (seen: 40 % more instructions)."""


def tile_registers(product: ProductName, rows: int, vectors: int) -> int:
    """Return the vector registers of a tile: totals, and the operands of a step.

    What LLVM keeps beside them is not counted: a tile that fits by this may still spill.
    """
    if product == "mlal":
        # A vector is four columns, whose partial sums take a register each; two registers a row,
        # two of weights, two of products.
        return 4 * vectors * rows + 2 * rows + 4
    if product == "sdot":
        # Rows of two steps, four to a register; one register stays free.
        return rows * vectors + 2 * math.ceil(rows / 4) + vectors + 1
    if product == "smmla":
        # Two by two totals a register; rows of two steps.
        return math.ceil(rows / 2) * (2 * vectors + 2) + 3
    return rows * vectors + vectors + 2


def product_tiles(product: ProductName, depth: int, cpu: Cpu) -> list[tuple[int, int]]:
    """Return the (rows, vectors) to choose a computed tile from: those that are known not to spill.

    Rows come in whole registers of them, where a register holds several.
    """
    registers = cpu.vector_registers
    if product == "sdot" and depth <= _UNROLLED_DEPTH:
        registers -= registers // 4
    return [
        (rows, vectors)
        for vectors in range(1, 2 if product == "mlal" else _MOST_VECTORS + 1)
        for rows in range(1, _MOST_ROWS + 1)
        if tile_registers(product, rows, vectors) <= registers
        and not (product == "sdot" and rows > 4 and rows % 4)
        and not (product == "smmla" and rows > 1 and rows % 2)
    ]
