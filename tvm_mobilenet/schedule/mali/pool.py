"""Global average pooling on a GPU over NHWC: a work-item for each vector of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import KernelWriter, constant
from tvm_mobilenet.schedule.mali.emit import (
    Argument,
    GpuRegisters,
    cast,
    grid,
    tile_start,
    write_gpu_kernel,
)
from tvm_mobilenet.schedule.mali.occupancy import (
    ADDRESSING_REGISTERS,
    ItemCost,
    choose_group,
    launch_fault,
    usable_lanes,
)
from tvm_mobilenet.schedule.workload import PoolWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = ["GpuPoolPlan", "plan_pool", "pool_cost", "pool_fault", "pool_items", "write_pool"]

_CHAINS = 4


@dataclass(frozen=True, kw_only=True)
class GpuPoolPlan:
    """How a global average pool is computed on a GPU; the sums are float32 always."""

    lanes: int
    """Channels of a work-item, one vector."""
    chains: int
    """Sums kept apart and added at the end, so that loads need not wait for additions."""
    group: tuple[int, int]
    """Work-items of a work-group, along channels and images."""


def pool_items(workload: PoolWorkload, plan: GpuPoolPlan) -> tuple[int, int, int]:
    """Return the work-items along channels and images."""
    return math.ceil(workload.channels / plan.lanes), workload.batch, 1


def pool_cost(workload: PoolWorkload, plan: GpuPoolPlan) -> ItemCost:
    """Return what one work-item does."""
    return ItemCost(
        macs=workload.pixels * plan.lanes,
        own_loads=workload.pixels + 1,
        shared_loads=0,
        registers=ADDRESSING_REGISTERS + plan.lanes * (plan.chains + 1),
    )


@cache
def plan_pool(workload: PoolWorkload, gpu: Gpu) -> GpuPoolPlan:
    """Compute the plan: as many work-items as there are vectors of channels."""
    lanes = usable_lanes(workload.channels, gpu.lanes(workload.dtype))
    plan = GpuPoolPlan(lanes=lanes, chains=min(_CHAINS, workload.pixels), group=(1, 1))
    channels, images, _ = pool_items(workload, plan)
    registers = pool_cost(workload, plan).registers
    group = choose_group((channels, images), registers, gpu)
    return GpuPoolPlan(lanes=lanes, chains=plan.chains, group=group)


def pool_fault(workload: PoolWorkload, plan: GpuPoolPlan, gpu: Gpu) -> str | None:
    """Return why a plan cannot be used for a workload on a device, or None."""
    if plan.lanes not in (1, 2, 4, 8, 16) or plan.lanes > workload.channels:
        return f"vectors of {plan.lanes} do not fit {workload.channels} channels"
    if not 1 <= plan.chains <= min(16, workload.pixels):
        return f"chains {plan.chains} is not in 1 to {min(16, workload.pixels)}"
    return launch_fault(plan.group, pool_cost(workload, plan).registers, gpu)


def write_pool(
    workload: PoolWorkload,
    plan: GpuPoolPlan,
    *,
    x_shape: tuple[int, ...] | None = None,
    y_shape: tuple[int, ...] | None = None,
) -> PrimFunc:
    """Write the kernel x (batch, ..., channels) -> y with the mean over what lies between."""
    w, lanes = workload, plan.lanes

    def body(kernel: KernelWriter) -> None:
        with grid(pool_items(w, plan), (*plan.group, 1)) as (vector, image, _):
            channel = tile_start(vector, lanes, w.channels)
            sums = GpuRegisters(plan.chains, "float32", lanes)
            for chain in range(plan.chains):
                sums[chain] = constant(0.0, "float32", lanes)

            def add(chain: int, pixel: object) -> None:
                at = (image * w.pixels + pixel) * w.channels + channel
                value = cast(kernel["x"].load(at, lanes), "float32", w.dtype, lanes)
                sums[chain] = sums[chain] + value

            with T.serial(0, w.pixels // plan.chains) as turn:
                for chain in range(plan.chains):
                    add(chain, turn * plan.chains + chain)
            for chain in range(w.pixels % plan.chains):
                add(chain, w.pixels - w.pixels % plan.chains + chain)
            total = sums[0]
            for chain in range(1, plan.chains):
                total = total + sums[chain]
            mean = total * constant(1.0 / w.pixels, "float32", lanes)
            kernel["y"].store(
                image * w.channels + channel, cast(mean, w.dtype, "float32", lanes), lanes
            )

    arguments = [
        Argument("x", x_shape or (w.batch, w.pixels, w.channels), w.dtype),
        Argument("y", y_shape or (w.batch, w.channels), w.dtype),
    ]
    return write_gpu_kernel(arguments, body)
