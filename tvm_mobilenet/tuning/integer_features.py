"""What the speed of an integer plan may depend on, as numbers for the model of a search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm_mobilenet.schedule.integer.convolution import unrolled
from tvm_mobilenet.schedule.integer.depthwise import IntegerDepthwisePlan
from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan
from tvm_mobilenet.schedule.integer.tiles import tile_registers
from tvm_mobilenet.schedule.integer.workload import (
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerWorkload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu
    from tvm_mobilenet.tuning.integer_kernels import IntegerPlan

__all__ = ["integer_features"]


def integer_features(workload: IntegerWorkload, plan: IntegerPlan, cpu: Cpu) -> list[float]:
    """Return the features of a plan; as many for every family."""
    common = [math.log2(1 + workload.macs), math.log2(workload.bytes)]
    if isinstance(plan, IntegerMatmulPlan):
        assert isinstance(workload, IntegerMatmulWorkload | IntegerConvWorkload)
        is_product = isinstance(workload, IntegerMatmulWorkload)
        found = [8 if is_product else 9, *_product(workload, plan, cpu)]
    elif isinstance(plan, IntegerDepthwisePlan):
        assert isinstance(workload, IntegerConvWorkload)
        found = [10, *_depthwise(workload, plan, cpu)]
    else:
        found = [11, plan.block, plan.tasks]
    return [*common, *found]


def _product(
    workload: IntegerMatmulWorkload | IntegerConvWorkload, plan: IntegerMatmulPlan, cpu: Cpu
) -> list[float]:
    w = workload if isinstance(workload, IntegerMatmulWorkload) else unrolled(workload)
    row_tiles = math.ceil(w.rows / plan.row_tile)
    panels = len(plan.panels(w.columns))
    items = row_tiles if plan.outer == "rows" else panels
    tasks = math.ceil(items / plan.block)
    return [
        plan.row_tile,
        plan.column_vectors,
        plan.row_tile * plan.column_vectors,
        tile_registers(plan.product, plan.row_tile, plan.column_vectors),
        row_tiles * plan.row_tile / w.rows,
        w.rows % plan.row_tile,
        panels * plan.column_vectors * plan.lanes / w.columns,
        plan.sums,
        plan.chunk,
        plan.unroll,
        float(plan.outer == "rows"),
        plan.block,
        float(plan.prefetch),
        float(plan.is_parallel),
        math.ceil(tasks / cpu.cores) * cpu.cores / tasks - 1,
        math.log2(w.depth),
        math.log2(w.depth * w.columns),
    ]


def _depthwise(w: IntegerConvWorkload, plan: IntegerDepthwisePlan, cpu: Cpu) -> list[float]:
    blocks = math.ceil(w.out_height / plan.row_block)
    tiles = math.ceil(plan.row_block / plan.row_tile)
    planes = math.ceil(w.in_channels / plan.lanes)
    tasks = w.batch * blocks * math.ceil(planes / plan.plane_block)
    return [
        plan.row_tile,
        plan.column_tile,
        plan.row_tile * plan.column_tile,
        plan.lanes,
        tiles * plan.row_tile / plan.row_block,
        math.ceil(w.out_width / plan.column_tile) * plan.column_tile / w.out_width,
        plan.row_block,
        blocks * plan.row_block / w.out_height,
        plan.plane_block / planes,
        plan.copied_pixels,
        float(plan.is_parallel),
        math.ceil(tasks / cpu.cores) * cpu.cores / tasks - 1,
        w.stride[0],
        w.kernel[0],
        math.log2(w.in_channels),
    ]
