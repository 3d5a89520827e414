"""Whether a kernel is worth cutting among the threads at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet.schedule.workload import Workload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["CACHE_BYTES_PER_CYCLE", "LAUNCH_CYCLES", "pays_to_parallelize"]

CACHE_BYTES_PER_CYCLE = 32
"""What the L2 cache and the cores' shared cache deliver; 32 on Zen 4, less on small cores."""
LAUNCH_CYCLES = 6000
"""Starting a parallel loop and waiting for it: 2 microseconds at 3 GHz, seen with two threads."""


def pays_to_parallelize(workload: Workload, cpu: Cpu) -> bool:
    """Tell whether the cycles that the other cores take over are more than starting them costs."""
    multiply_adds = workload.macs / cpu.lanes(workload.dtype) / cpu.fma_units
    cycles = max(multiply_adds, workload.bytes / CACHE_BYTES_PER_CYCLE)
    return cpu.cores > 1 and cycles * (1 - 1 / cpu.cores) > LAUNCH_CYCLES
