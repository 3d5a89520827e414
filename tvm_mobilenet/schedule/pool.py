"""Global average pooling over NHWC: vectors along the channels, one pass over the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Parameter,
    Registers,
    constant,
    split_lanes,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.workload import PoolWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["PoolPlan", "plan_pool", "write_pool"]


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """How a global average pool is computed."""

    lanes: int
    """Elements of a full vector."""
    chains: int
    """Sums kept apart and added at the end, so that one addition need not wait for the last."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""


def plan_pool(workload: PoolWorkload, cpu: Cpu) -> PoolPlan:
    """Compute the plan: as many chains as hide the latency of an addition."""
    return PoolPlan(
        lanes=cpu.lanes(workload.dtype),
        chains=min(8, workload.pixels),
        is_parallel=pays_to_parallelize(workload, cpu),
    )


def write_pool(
    workload: PoolWorkload, plan: PoolPlan, *, x_shape: tuple[int, ...], y_shape: tuple[int, ...]
) -> PrimFunc:
    """Write the kernel x (batch, ..., channels) -> y with the mean over what lies between."""
    w = workload

    def body(kernel: KernelWriter) -> None:
        def vector(image: Expr, channel: Expr, lanes: int) -> None:
            sums = Registers(plan.chains, w.dtype, lanes)
            for chain in range(plan.chains):
                sums[chain] = constant(0.0, w.dtype, lanes)

            def add(chain: int, pixel: Expr) -> None:
                at = (image * w.pixels + pixel) * w.channels + channel
                sums[chain] = sums[chain] + kernel["x"].load(at, lanes)

            with T.serial(0, w.pixels // plan.chains) as group:
                for chain in range(plan.chains):
                    add(chain, group * plan.chains + chain)
            for chain in range(w.pixels % plan.chains):
                add(chain, w.pixels - w.pixels % plan.chains + chain)
            total = sums[0]
            for chain in range(1, plan.chains):
                total = total + sums[chain]
            mean = total * constant(1.0 / w.pixels, w.dtype, lanes)
            kernel["y"].store(image * w.channels + channel, mean, lanes)

        pieces = split_lanes(w.channels, plan.lanes)
        full = sum(1 for _, lanes in pieces if lanes == plan.lanes)
        with T.serial(0, w.batch) as image:
            if full:
                with task_loop(full, plan.is_parallel) as index:
                    vector(image, index * plan.lanes, plan.lanes)
            for offset, lanes in pieces[full:]:
                vector(image, offset, lanes)

    return write_kernel(w.dtype, [Parameter("x", x_shape), Parameter("y", y_shape)], body)
