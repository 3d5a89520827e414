"""The register tile of a matrix product, computed from the register file.

A tile of `rows` x `vectors` accumulators stays in registers over the whole reduction. Each step
loads `vectors` weights and `rows` inputs and issues `rows * vectors` FMAs, so the larger the tile,
the fewer loads an FMA costs, until it no longer fits and spills.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.schedule.neon_tile import LANES, NeonTile

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "CACHE_LINE_BYTES",
    "Panel",
    "RegisterTile",
    "can_assemble",
    "column_panels",
    "conflict_free_rows",
    "packed_product_cost",
    "packed_tiles",
    "register_tiles",
    "tile_cycles",
]

CACHE_LINE_BYTES = 64

_FMA_LATENCY_CYCLES = 4
"""Zen 4 and Cortex-A72/A76 alike (vendor optimisation guides, FMA rows)."""
_LOADS_PER_CYCLE = 2
"""Load ports of every out-of-order core among the targets; in-order ones have one."""
_STREAMED_VECTORS_PER_CYCLE = 0.5
"""Weights come from the L2 cache, which delivers about half a vector a cycle (32 bytes on Zen 4,
8 to 16 on the Cortex cores)."""
_ISSUE_SLOT_CYCLES = 0.3
"""Weight of a load that another port bounds: a Cortex-A72 issues three instructions a cycle."""
_LOOP_INSTRUCTIONS = 4
"""Two pointers, the counter and the branch; seen in the object code."""
_EPILOGUE_INSTRUCTIONS = 3.8
"""For each accumulator of a tile of packed rows; seen in the object code."""
_TILE_INSTRUCTIONS = 16
"""Of a tile of packed rows beside those: loads of the bias, addresses, the loop over tiles."""
_TILE_OVERHEAD_CYCLES = 24
"""Loop set-up and epilogue of one tile beside its stores; from timings of K = 8 tiles."""


@dataclass(frozen=True)
class RegisterTile:
    """Accumulators of one tile: `rows` x `vectors`, each vector one register."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Panel:
    """Neighbouring output columns that share a register tile."""

    start: int
    """First column."""
    vectors: tuple[tuple[int, int], ...]
    """Offset from `start` and lanes of each vector."""

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(lanes for _, lanes in self.vectors)


def column_panels(columns: int, lanes: int, vectors: int) -> list[Panel]:
    """Cut `columns` into panels of `vectors` full vectors; the last one takes what is left."""
    pieces = split_lanes(columns, lanes)
    panels = []
    for first in range(0, len(pieces), vectors):
        group = pieces[first : first + vectors]
        start = group[0][0]
        panels.append(Panel(start, tuple((offset - start, width) for offset, width in group)))
    return panels


def register_tiles(cpu: Cpu) -> Iterator[RegisterTile]:
    """Yield every tile that the register file holds beside the operands of one step.

    Broadcast operands need one register at a time, by-lane operands one for each row.
    """
    for vectors in range(1, 7):
        for rows in range(1, 29):
            operands = rows + 2 if cpu.fma == "by-lane" else vectors + 1
            if rows * vectors + operands <= cpu.vector_registers:
                yield RegisterTile(rows, vectors)


def tile_cycles(rows: int, vectors: int, depth: int, cpu: Cpu) -> float:
    """Return the cycles one tile takes by the bounds of its FMAs, loads and latency."""
    fmas = rows * vectors / cpu.fma_units
    if cpu.fma == "by-lane":
        # Four steps share one load of the inputs; weights come in pairs of vectors.
        load_instructions = rows / 4 + math.ceil(vectors / 2)
    else:
        load_instructions = rows + vectors
    loads = load_instructions / min(_LOADS_PER_CYCLE, cpu.fma_units + 1)
    stream = vectors / _STREAMED_VECTORS_PER_CYCLE
    step = max(fmas, loads, stream, _FMA_LATENCY_CYCLES)
    if cpu.fma == "by-lane":
        # Narrow cores have few issue slots to spare. A wide one hides its loads, and is measured
        # to prefer tall tiles, which stream fewer weights.
        step += _ISSUE_SLOT_CYCLES * load_instructions
    return depth * step + _TILE_OVERHEAD_CYCLES + 2 * rows * vectors


def can_assemble(cpu: Cpu) -> bool:
    """Tell whether tiles of packed rows can be written in assembly: on AArch64."""
    return cpu.isa == "neon"


def packed_tiles(cpu: Cpu, *, in_assembly: bool, lanes: int = LANES) -> Iterator[RegisterTile]:
    """Yield every tile of packed rows that the register file holds.

    In assembly every register is ours. In LLVM's there are, beside the accumulators, the rows of
    two steps, four rows a register, and the weights of one. One register is left free: LLVM's
    scheduler spills where there is none. Whole groups of four rows only, since LLVM takes a
    register of which three lanes are used apart.
    """
    if in_assembly:
        for vectors in range(1, 7):
            for rows in (*range(1, 9), 12, 16, 20, 24):
                if NeonTile(rows, vectors, lanes).is_possible:
                    yield RegisterTile(rows, vectors)
        return
    for vectors in range(1, 7):
        for rows in range(4, 17, 4):
            operands = 2 * (rows // 4) + vectors
            if rows * vectors + operands < cpu.vector_registers:
                yield RegisterTile(rows, vectors)


def packed_product_cost(
    tile: RegisterTile,
    rows: int,
    depth: int,
    panels: list[Panel],
    step: int,
    cpu: Cpu,
    *,
    in_assembly: bool,
    lanes: int = LANES,
) -> float:
    """Return what a product of packed rows costs with a tile, in instructions.

    A core that multiplies by lane starts two or three instructions a cycle, of which one or two
    are multiply-adds: what is not a multiply-add takes their slots, so fewer instructions are also
    less time. Tiles too small to hide the latency of a multiply-add are charged for the wait.
    """
    full, rest = divmod(rows, tile.rows)
    cost = 0.0
    for panel in panels:
        vectors = len(panel.vectors)
        is_assembled = in_assembly and all(width == lanes for _, width in panel.vectors)
        one = _assembled_tile_cost if is_assembled else _packed_tile_cost
        cost += full * one(NeonTile(tile.rows, vectors, lanes), depth, step, cpu)
        if rest:
            cost += one(NeonTile(rest, vectors, lanes), depth, step, cpu)
    return cost


def _assembled_tile_cost(tile: NeonTile, depth: int, step: int, cpu: Cpu) -> float:
    fmas = max(
        tile.accumulators,
        _FMA_LATENCY_CYCLES * cpu.fma_units,
        tile.vectors / _STREAMED_VECTORS_PER_CYCLE,
    )
    step = min(step, tile.most_steps(tile.groups))
    # Begin at the bias and store row by row, two bounds, the two loops and constants.
    epilogue = 2 * tile.rows * math.ceil(tile.vectors / 4) + 2 * tile.accumulators + 7
    return depth * (fmas + tile.loads_per_step + 2 / step) + epilogue


def _packed_tile_cost(tile: NeonTile, depth: int, step: int, cpu: Cpu) -> float:
    accumulators = tile.accumulators
    fmas = max(
        accumulators,
        _FMA_LATENCY_CYCLES * cpu.fma_units,
        tile.vectors / _STREAMED_VECTORS_PER_CYCLE,
    )
    # Two registers of a group load as a pair, and so do neighbouring vectors of weights.
    loads = tile.groups / tile.steps_per_register / 2 + tile.vectors / 2
    loop = _LOOP_INSTRUCTIONS / step
    # Begin at the bias, two bounds, and a store, some of them as pairs.
    epilogue = _EPILOGUE_INSTRUCTIONS * accumulators + _TILE_INSTRUCTIONS
    return depth * (fmas + loads + loop) + epilogue


def conflict_free_rows(row_bytes: int, cpu: Cpu) -> int:
    """Return how many rows, `row_bytes` apart, stay in the L1 cache together.

    Rows a power of two apart share few sets of the cache: at 2048 bytes an 8-way cache of 32 KiB
    holds 16 lines of them. One way is left to the weights that stream past.
    """
    sets = cpu.l1d_kib * 1024 // (CACHE_LINE_BYTES * cpu.l1d_ways)
    lines_apart = max(1, row_bytes // CACHE_LINE_BYTES)
    used_sets = sets // math.gcd(lines_apart, sets)
    return used_sets * max(1, cpu.l1d_ways - 1)
