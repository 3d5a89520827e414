"""How a tile of packed rows shares the 32 vector registers of AArch64, to the last one.

Accumulators take most; what is left holds steps of the rows, a register for every group of four
rows and step, and vectors of weights. The more of both are held, the more one load brings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LANES", "MOST_ACCUMULATORS", "REGISTERS", "VECTOR_BYTES", "NeonTile"]

LANES = 4
VECTOR_BYTES = 16
REGISTERS = 32
MOST_ACCUMULATORS = 24
"""What is left takes four vectors of rows and four of weights, and the constants of an epilogue."""
_FURTHEST_PAIR = 1008
"""Greatest offset of a load of a pair, in bytes."""


@dataclass(frozen=True)
class NeonTile:
    """How the registers are shared among accumulators, rows and weights."""

    rows: int
    vectors: int

    @property
    def groups(self) -> int:
        """Groups of four rows, the last one perhaps not full."""
        return math.ceil(self.rows / LANES)

    @property
    def accumulators(self) -> int:
        """Registers that hold the tile."""
        return self.rows * self.vectors

    @property
    def steps_of_rows(self) -> int:
        """Steps of the depth that the registers hold of every group: four, or two in pairs."""
        return 4 if self._fits(4) and self._loads(4) <= self._loads(2) else 2

    @property
    def chunk(self) -> int:
        """Vectors of weights that one instruction loads."""
        return min(4, self._left(self.steps_of_rows))

    @property
    def buffers(self) -> int:
        """Chunks of weights there is room for: with two, one is loaded while one is used."""
        return min(2, self._left(self.steps_of_rows) // self.chunk)

    @property
    def is_possible(self) -> bool:
        """Tell whether the registers suffice."""
        return self.accumulators <= MOST_ACCUMULATORS and self._fits(2)

    @property
    def loads_per_step(self) -> float:
        """Load instructions of one step of the depth."""
        return self._loads(self.steps_of_rows)

    def most_steps(self, groups: int) -> int:
        """Return how many steps can be written out where packed tiles have `groups` groups."""
        if self.steps_of_rows == 4:
            return 64
        return (_FURTHEST_PAIR + 2 * VECTOR_BYTES) // (groups * LANES * VECTOR_BYTES) * LANES

    def _left(self, steps: int) -> int:
        return REGISTERS - self.accumulators - steps * self.groups

    def _fits(self, steps: int) -> bool:
        return self._left(steps) >= 1

    def _loads(self, steps: int) -> float:
        if not self._fits(steps):
            return math.inf
        return self.groups / steps + self.vectors / min(4, self._left(steps))
