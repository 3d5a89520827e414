"""How a tile of packed rows shares the 32 vector registers of AArch64, to the last one.

Accumulators take most; what is left holds steps of the rows, a register for every group of four
rows and step, and vectors of weights. The more of both are held, the more one load brings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["GROUP", "LANES", "MOST_ACCUMULATORS", "REGISTERS", "VECTOR_BYTES", "NeonTile"]

GROUP = 4
"""Rows that share a register."""
LANES = 4
"""Elements of a register, in float32."""
VECTOR_BYTES = 16
REGISTERS = 32
MOST_ACCUMULATORS = 24
"""What is left takes four vectors of rows and four of weights, and the constants of an epilogue."""
_INDEXED_HALVES = 16
"""Registers whose lanes a multiply-add of float16 can pick: its encoding has four bits for them."""
_FURTHEST_PAIR = 1008
"""Greatest offset of a load of a pair, in bytes."""


@dataclass(frozen=True)
class NeonTile:
    """How the registers are shared among accumulators, rows and weights."""

    rows: int
    vectors: int
    lanes: int = LANES
    """Elements of a register: 4 of float32, 8 of float16."""

    @property
    def steps_per_register(self) -> int:
        """Steps of the depth that a register of a group holds."""
        return self.lanes // GROUP

    @property
    def groups(self) -> int:
        """Groups of four rows, the last one perhaps not full."""
        return math.ceil(self.rows / GROUP)

    @property
    def accumulators(self) -> int:
        """Registers that hold the tile."""
        return self.rows * self.vectors

    @property
    def held(self) -> int:
        """Registers that hold steps of every group: four, or two that load as a pair."""
        return 4 if self._fits(4) and self._loads(4) <= self._loads(2) else 2

    @property
    def chunk(self) -> int:
        """Vectors of weights that one instruction loads."""
        return min(4, self._left(self.held))

    @property
    def buffers(self) -> int:
        """Chunks of weights there is room for: with two, one is loaded while one is used."""
        return min(2, self._left(self.held) // self.chunk)

    @property
    def is_possible(self) -> bool:
        """Tell whether the registers suffice."""
        return self.accumulators <= MOST_ACCUMULATORS and self._fits(2)

    @property
    def loads_per_step(self) -> float:
        """Load instructions of one step of the depth."""
        return self._loads(self.held)

    def most_steps(self, groups: int) -> int:
        """Return how many steps can be written out where packed tiles have `groups` groups."""
        if self.held == 4:
            return 64
        blocks = (_FURTHEST_PAIR + 2 * VECTOR_BYTES) // (groups * GROUP * VECTOR_BYTES)
        return blocks * GROUP * self.steps_per_register

    def _left(self, held: int) -> int:
        return REGISTERS - self.accumulators - held * self.groups

    def _fits(self, held: int) -> bool:
        if self.lanes == 8 and held * self.groups > _INDEXED_HALVES:
            return False
        return self._left(held) >= 1

    def _loads(self, held: int) -> float:
        if not self._fits(held):
            return math.inf
        of_rows = self.groups / (held * self.steps_per_register)
        return of_rows + self.vectors / min(4, self._left(held))
