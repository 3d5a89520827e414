"""What a device's limits say of a kernel: registers, threads in flight, cycles, work-groups.

A model to choose between tiles by, and to refuse what cannot run; it is no measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = [
    "ADDRESSING_REGISTERS",
    "ItemCost",
    "choose_group",
    "estimated_cycles",
    "group_limit",
    "launch_fault",
    "threads_in_flight",
    "usable_lanes",
]

ADDRESSING_REGISTERS = 4
"""Indices and pointers of a work-item: one 128-bit register."""

_HIDING_SHARE = 4
"""A core that is filled to a quarter hides most of its memory's latency."""

_COMPUTED_REGISTERS = 64
"""What every Mali has. A computed tile stays below it even where a target allows for more."""

_GROUP = 64
"""Work-items of a computed work-group: the most that every Mali runs at any number of registers,
and a multiple of every warp. Arm's guides advise 4 to 128, powers of two."""


@dataclass(frozen=True, kw_only=True)
class ItemCost:
    """What one work-item does."""

    macs: int
    """Multiply-adds, on elements."""
    own_loads: float
    """Vector loads and stores that no neighbour shares."""
    shared_loads: float
    """Vector loads that all work-items of a warp do at one address."""
    registers: int
    """32-bit registers alive at once."""


def usable_lanes(extent: int, lanes: int) -> int:
    """Return the widest vector of OpenCL's that fits into `extent` elements.

    >>> usable_lanes(6, 8)
    4
    """
    while lanes > extent:
        lanes //= 2
    return max(1, lanes)


def threads_in_flight(registers: int, gpu: Gpu) -> int:
    """Return how many work-items of so many registers a core holds; 0 where values are spilled."""
    if registers > gpu.most_registers:
        return 0
    halvings = max(0, math.ceil(math.log2(registers / gpu.occupancy_registers)))
    return max(1, gpu.threads_per_core >> halvings)


def group_limit(registers: int, gpu: Gpu) -> int:
    """Return the most work-items of a work-group: all of its registers must fit one core."""
    return min(gpu.max_work_group, threads_in_flight(registers, gpu))


def estimated_cycles(items: int, cost: ItemCost, gpu: Gpu, dtype: str = "float32") -> float:
    """Return about how many cycles a kernel of `items` work-items takes."""
    fma = gpu.fma_per_core * (2 if dtype == "float16" else 1)
    arithmetic = cost.macs / fma
    memory = cost.own_loads + cost.shared_loads / gpu.warp
    threads = threads_in_flight(cost.registers, gpu)
    if threads == 0 or cost.registers > _COMPUTED_REGISTERS:
        return math.inf
    each = math.ceil(items / gpu.cores)
    wanted = gpu.threads_per_core / _HIDING_SHARE
    exposed = max(1.0, wanted / min(threads, each))
    return each * max(arithmetic, memory) * exposed


def choose_group(items: tuple[int, int], registers: int, gpu: Gpu) -> tuple[int, int]:
    """Return the work-items of a group along x and y that waste the fewest.

    Powers of two, x first: neighbours along x read what lies next to each other.
    """
    most = max(1, min(_GROUP, group_limit(registers, gpu)))
    best: tuple[tuple[float, int], tuple[int, int]] | None = None
    x = most
    while x >= 1:
        y = min(most // x, _power_above(items[1]))
        run = -(-items[0] // x) * x * -(-items[1] // y) * y
        # A group of few work-items leaves a core idle, so its size counts before its shape.
        key = (run * max(1.0, (most / 4) / (x * y)), -x)
        if x <= _power_above(items[0]) and (best is None or key < best[0]):
            best = key, (x, y)
        x //= 2
    assert best is not None
    return best[1]


def _power_above(count: int) -> int:
    return 1 << max(0, (count - 1).bit_length())


def launch_fault(group: tuple[int, int], registers: int, gpu: Gpu) -> str | None:
    """Return why a kernel cannot be launched on a device, or None."""
    if registers > gpu.most_registers:
        return f"it needs {registers} registers, {gpu.model} has {gpu.most_registers} a thread"
    size = group[0] * group[1]
    limit = group_limit(registers, gpu)
    if min(group) < 1 or size > limit:
        return (
            f"its work-group of {group[0]} x {group[1]} is not in 1 to {limit}, what {gpu.model} "
            f"runs with {registers} registers a thread"
        )
    return None
