"""The plans that a search may try for a workload on a GPU, and what a learnt model sees of one."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.mali.convolution import GpuConvPlan
from tvm_mobilenet.schedule.mali.depthwise import GpuDepthwisePlan
from tvm_mobilenet.schedule.mali.families import (
    GpuPlan,
    compute_plan,
    item_cost,
    plan_fault,
    work_items,
)
from tvm_mobilenet.schedule.mali.occupancy import group_limit
from tvm_mobilenet.schedule.mali.pool import GpuPoolPlan
from tvm_mobilenet.schedule.mali.product import GpuProductPlan
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    TunableWorkload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = ["GpuSpace", "gpu_features"]

Change = dict[str, Any]

_LANES = (1, 2, 4, 8, 16)
_STEPS = (1, 2, 4)
_GROUPS = tuple((1 << x, 1 << y) for x in range(9) for y in range(9) if x + y <= 8)
"""Powers of two, up to 256 work-items."""
_WIDE_TILES = ((4, 2), (6, 2), (4, 3), (3, 4), (6, 1), (8, 1))
"""Rows and vectors of tiles for a device with more registers than a Mali: a CPU's driver."""


@dataclass(frozen=True)
class GpuSpace:
    """All plans for one workload on one device; what `Space` is for a processor."""

    workload: TunableWorkload
    gpu: Gpu

    @property
    def start(self) -> GpuPlan:
        """The computed plan."""
        return compute_plan(self.workload, self.gpu)

    def seeds(self) -> list[GpuPlan]:
        """Return the start and the other choices that are as good a guess as any."""
        start = self.start
        seeds: list[GpuPlan] = [start]
        if isinstance(start, GpuProductPlan):
            seeds += [
                replace(start, row_tile=rows, column_vectors=vectors, lanes=8, depth_lanes=1)
                for rows, vectors in _WIDE_TILES
            ]
        elif isinstance(start, GpuConvPlan):
            seeds += [
                replace(start, column_tile=rows, channel_vectors=vectors, lanes=8)
                for rows, vectors in _WIDE_TILES
            ]
        else:
            seeds.append(replace(start, lanes=2 * start.lanes))
        return list(self._usable(seeds))

    def neighbours(self, plan: Any) -> list[GpuPlan]:
        """Return the plans that differ from `plan` in one dimension."""
        return list(_neighbours(self, plan))

    def step(self, plan: Any, rng: random.Random) -> GpuPlan | None:
        """Return a plan that differs from `plan` in one dimension, or None by bad luck."""
        change = rng.choice(rng.choice(list(self._dimensions(plan))))
        return next(self._usable([replace(plan, **change)]), None)

    def normal(self, plan: Any) -> Any:
        """Return the plan: each is the only spelling of its kernel."""
        return plan

    def _usable(self, plans: Iterable[GpuPlan]) -> Iterator[GpuPlan]:
        """Yield the plans without fault, each once; what is beyond the device is never built."""
        for plan in dict.fromkeys(plans):
            if plan_fault(self.workload, plan, self.gpu) is None:
                yield plan

    def _dimensions(self, plan: GpuPlan) -> Iterator[list[Change]]:
        w = self.workload
        limit = group_limit(item_cost(w, plan).registers, self.gpu)
        yield [{"group": group} for group in _GROUPS if group[0] * group[1] <= limit]
        yield [{"lanes": lanes} for lanes in _LANES]
        if isinstance(plan, GpuProductPlan):
            yield [
                {"row_tile": rows, "column_vectors": vectors}
                for rows in range(1, 13)
                for vectors in range(1, 5)
            ]
            yield [{"depth_lanes": lanes} for lanes in _LANES]
            yield [{"depth_step": step} for step in _STEPS]
            yield [{"order": "columns"}, {"order": "rows"}]
            yield [{"weights": "rows"}, {"weights": "panels"}]
        elif isinstance(plan, GpuConvPlan):
            yield [
                {"column_tile": columns, "channel_vectors": vectors}
                for columns in range(1, 13)
                for vectors in range(1, 5)
            ]
            yield [{"depth_lanes": lanes} for lanes in _LANES]
        elif isinstance(plan, GpuDepthwisePlan):
            yield [{"column_tile": columns} for columns in range(1, 17)]
            yield [{"order": "channels"}, {"order": "pixels"}]
        else:
            yield [{"chains": chains} for chains in range(1, 9)]


@functools.lru_cache(maxsize=256)
def _neighbours(space: GpuSpace, plan: GpuPlan) -> tuple[GpuPlan, ...]:
    changed = [replace(plan, **change) for changes in space._dimensions(plan) for change in changes]
    return tuple(p for p in space._usable(changed) if p != plan)


def gpu_features(workload: TunableWorkload, plan: GpuPlan) -> list[float]:
    """Return what a plan's speed may depend on, as numbers; as many for every family."""
    cost, items = item_cost(workload, plan), work_items(workload, plan)
    common = [
        math.log2(1 + workload.macs),
        math.log2(workload.bytes),
        math.log2(items),
        cost.registers,
        math.log2(1 + cost.own_loads),
        math.log2(1 + cost.shared_loads),
        math.log2(1 + cost.macs),
        # Of what is computed, how much is computed once.
        items * cost.macs / max(1, workload.macs),
        plan.lanes,
        math.log2(plan.group[0]),
        math.log2(plan.group[1]),
    ]
    if isinstance(plan, GpuProductPlan):
        product = workload.pointwise if isinstance(workload, GatedWorkload) else workload
        assert isinstance(product, MatmulWorkload)
        return [
            *common,
            1,
            plan.row_tile,
            plan.column_vectors,
            plan.depth_lanes,
            plan.depth_step,
            float(plan.order == "rows"),
            float(plan.weights == "panels"),
            math.log2(product.depth),
        ]
    if isinstance(plan, GpuConvPlan):
        tile = [plan.column_tile, plan.channel_vectors, plan.depth_lanes]
        return [*common, 2, *tile, 0.0, 0.0, 0.0, 0.0]
    if isinstance(plan, GpuDepthwisePlan):
        assert isinstance(workload, ConvWorkload)
        tile = [plan.column_tile, workload.stride[0], 0]
        return [*common, 3, *tile, 0.0, float(plan.order == "pixels"), 0.0, 0.0]
    assert isinstance(plan, GpuPoolPlan)
    assert isinstance(workload, PoolWorkload)
    return [*common, 4, plan.chains, 0, 0, 0.0, 0.0, 0.0, 0.0]
