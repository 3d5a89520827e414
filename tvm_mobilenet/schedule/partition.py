"""Which convolutions that follow each other become one cascade, by a model of what moving costs.

Every way of cutting a run of convolutions into kernels is priced: what each kernel computes, rows
that two tasks compute included, and what each cut moves. What stays in the L2 cache is free.
The cheapest way is found from behind, as the shortest path.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm_mobilenet.schedule.cascade import plan_cascade
from tvm_mobilenet.schedule.matmul import plan_matmul
from tvm_mobilenet.schedule.register_tile import column_panels, tile_cycles
from tvm_mobilenet.schedule.threads import LAUNCH_CYCLES
from tvm_mobilenet.schedule.workload import CascadeWorkload, ConvWorkload, MatmulWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["can_cascade", "stages_to_fuse"]

_FAR_BYTES_PER_CYCLE = 8
"""Between one core and the cache that all share, or memory: 24 and 12 GB/s at 2.5 GHz on Cascade
Lake."""
_FAR_TRIPS = 3
"""A tensor that does not stay in the L2 cache is fetched to be written, written back and read."""
_MOST_STAGES = 5
"""What was measured; the rows that two tasks compute, and the code, grow with each."""
_OWN_SHARE = 0.6
"""Of the L2 cache, for a cascade's weights and rings."""


def can_cascade(cpu: Cpu) -> bool:
    """Tell whether cascades are made for a processor: where its caches' rates were measured."""
    return cpu.isa == "avx512"


def stages_to_fuse(stages: Sequence[ConvWorkload], cpu: Cpu) -> int:
    """Return how many of a run of convolutions, from the first, the first kernel should compute."""
    n = len(stages)
    # From the k-th stage on: the cost, and the length of the first kernel.
    best: list[tuple[float, int]] = [(0.0, 0)] * (n + 1)
    for k in reversed(range(n)):
        choices = []
        for length in range(1, min(n - k, _MOST_STAGES) + 1):
            segment = stages[k : k + length]
            if segment[-1].is_depthwise and k + length < n and stages[k + length].is_pointwise:
                continue  # whether a pair is one kernel or two is for its own plan to say
            cost = _segment_cycles(tuple(segment), cpu)
            if cost is not None:
                cut = _cut_cycles(segment[-1], cpu)
                choices.append((cost + cut + best[k + length][0], length))
        best[k] = min(choices)
    return best[0][1]


def _cut_cycles(stage: ConvWorkload, cpu: Cpu) -> float:
    """Return the core cycles of a tensor's trips out of the core, and of starting threads again.

    Tensors that stay in the L2 cache of one core are free: fused all the same,
    `mobilenet_v1_0.25_128` took 1.07 of its time on one thread, and as long on two.
    """
    if stage.output_bytes / stage.batch <= cpu.l2_kib * 1024 / 2:
        return 0
    return LAUNCH_CYCLES * (cpu.cores - 1) + _FAR_TRIPS * stage.output_bytes / _FAR_BYTES_PER_CYCLE


# Every convolution that begins a kernel asks again for the segments of the run behind it.
@functools.lru_cache(maxsize=4096)
def _segment_cycles(stages: tuple[ConvWorkload, ...], cpu: Cpu) -> float | None:
    """Return the core cycles of computing some stages as one kernel, None where that is no choice.

    A depthwise convolution and the pointwise one after it are priced as the pair that they are.
    """
    is_pair = len(stages) == 2 and stages[0].is_depthwise and stages[1].is_pointwise
    if len(stages) == 1 or is_pair:
        return sum(
            _stage_cycles(stage, cpu, stage.out_height * stage.out_width) for stage in stages
        )
    rings = sum(
        stage.output_bytes // stage.out_height // stage.batch * reader.kernel[0]
        for stage, reader in itertools.pairwise(stages)
    )
    weights = sum(stage.weight_bytes for stage in stages)
    if rings + weights > _OWN_SHARE * cpu.l2_kib * 1024:
        return None
    last = stages[-1]
    if last.batch * last.out_height < cpu.cores:
        return None
    plan = plan_cascade(CascadeWorkload(stages=stages), cpu)
    tasks = math.ceil(last.out_height / plan.row_block)
    rows = plan.row_block
    cycles = 0.0
    for index in reversed(range(len(stages))):
        stage = stages[index]
        repeated = tasks * rows / stage.out_height
        cycles += _stage_cycles(stage, cpu, stage.out_width) * repeated
        if index:
            rows = min(stage.height, (rows - 1) * stage.stride[0] + stage.kernel[0])
    return cycles


@functools.lru_cache(maxsize=4096)
def _stage_cycles(stage: ConvWorkload, cpu: Cpu, rows: int) -> float:
    """Return the core cycles of a stage, its product cut into blocks of `rows` pixels."""
    if not stage.is_pointwise:
        return stage.macs / cpu.lanes(stage.dtype) / cpu.fma_units
    block = MatmulWorkload(rows=rows, depth=stage.in_channels, columns=stage.out_channels)
    plan = plan_matmul(block, cpu)
    panels = column_panels(block.columns, plan.lanes, plan.column_vectors)
    one = math.ceil(rows / plan.row_tile) * sum(
        tile_cycles(plan.row_tile, len(panel.vectors), block.depth, cpu) for panel in panels
    )
    return one * stage.batch * stage.height * stage.width / rows
