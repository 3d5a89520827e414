"""The kernel families of a GPU under one name each: compute a plan, check one, pack, write.

What selects kernels and what searches for better plans both ask here, so that a plan means the same
to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet._tvm import PrimFunc
from tvm_mobilenet.schedule.mali.convolution import (
    GpuConvPlan,
    conv_cost,
    conv_fault,
    conv_items,
    pack_conv,
    plan_conv,
    write_conv,
)
from tvm_mobilenet.schedule.mali.depthwise import (
    GpuDepthwisePlan,
    depthwise_cost,
    depthwise_fault,
    depthwise_items,
    pack_depthwise,
    plan_depthwise,
    write_depthwise,
)
from tvm_mobilenet.schedule.mali.occupancy import ItemCost
from tvm_mobilenet.schedule.mali.pool import (
    GpuPoolPlan,
    plan_pool,
    pool_cost,
    pool_fault,
    pool_items,
    write_pool,
)
from tvm_mobilenet.schedule.mali.product import (
    Accumulate,
    GpuProductPlan,
    pack_product,
    plan_product,
    product_cost,
    product_fault,
    product_items,
    write_product,
)
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    Workload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = [
    "GpuPlan",
    "compute_plan",
    "is_gpu_plan",
    "item_cost",
    "pack",
    "plan_fault",
    "work_items",
    "write",
]

GpuPlan = GpuProductPlan | GpuDepthwisePlan | GpuConvPlan | GpuPoolPlan


def is_gpu_plan(plan: object) -> bool:
    """Tell whether a plan is for a GPU."""
    return isinstance(plan, GpuPlan)


def compute_plan(workload: Workload, gpu: Gpu, accumulate: Accumulate = "float32") -> GpuPlan:
    """Compute the plan for a workload from the device's figures.

    Raises:
        TypeError: there is no family for such a workload.
    """
    if isinstance(workload, GatedWorkload):
        return plan_product(workload.pointwise, gpu, workload.batch, accumulate)
    if isinstance(workload, MatmulWorkload):
        return plan_product(workload, gpu, 1, accumulate)
    if isinstance(workload, PoolWorkload):
        return plan_pool(workload, gpu)
    if isinstance(workload, ConvWorkload):
        if workload.is_depthwise:
            return plan_depthwise(workload, gpu, accumulate)
        return plan_conv(workload, gpu, accumulate)
    raise TypeError(f"no GPU kernel computes {workload}")


def plan_fault(workload: Workload, plan: object, gpu: Gpu) -> str | None:
    """Return why a plan cannot be used for a workload on a device, or None.

    A kernel indexes memory by its plan, and a driver kills what is beyond its limits: whatever
    comes from a file or a search passes here before it is built.
    """
    if isinstance(workload, GatedWorkload) and isinstance(plan, GpuProductPlan):
        return product_fault(workload.pointwise, plan, gpu, workload.batch)
    if isinstance(workload, MatmulWorkload) and isinstance(plan, GpuProductPlan):
        return product_fault(workload, plan, gpu)
    if isinstance(workload, PoolWorkload) and isinstance(plan, GpuPoolPlan):
        return pool_fault(workload, plan, gpu)
    if isinstance(workload, ConvWorkload):
        if workload.is_depthwise and isinstance(plan, GpuDepthwisePlan):
            return depthwise_fault(workload, plan, gpu)
        if not workload.is_depthwise and isinstance(plan, GpuConvPlan):
            return conv_fault(workload, plan, gpu)
    return f"a {type(plan).__name__} does not compute a {type(workload).__name__} on a GPU"


def item_cost(workload: Workload, plan: GpuPlan) -> ItemCost:
    """Return what one work-item of a kernel does."""
    if isinstance(plan, GpuProductPlan):
        product = workload.pointwise if isinstance(workload, GatedWorkload) else workload
        assert isinstance(product, MatmulWorkload)
        return product_cost(product, plan)
    if isinstance(plan, GpuPoolPlan):
        assert isinstance(workload, PoolWorkload)
        return pool_cost(workload, plan)
    assert isinstance(workload, ConvWorkload)
    if isinstance(plan, GpuDepthwisePlan):
        return depthwise_cost(workload, plan)
    return conv_cost(workload, plan)


def work_items(workload: Workload, plan: GpuPlan) -> int:
    """Return how many work-items of a kernel have something to do."""
    if isinstance(plan, GpuProductPlan):
        if isinstance(workload, GatedWorkload):
            x, y, z = product_items(workload.pointwise, plan, workload.batch)
        else:
            assert isinstance(workload, MatmulWorkload)
            x, y, z = product_items(workload, plan)
    elif isinstance(plan, GpuPoolPlan):
        assert isinstance(workload, PoolWorkload)
        x, y, z = pool_items(workload, plan)
    else:
        assert isinstance(workload, ConvWorkload)
        if isinstance(plan, GpuDepthwisePlan):
            x, y, z = depthwise_items(workload, plan)
        else:
            x, y, z = conv_items(workload, plan)
    return x * y * z


def pack(weights: np.ndarray, plan: GpuPlan) -> np.ndarray:
    """Return weights as the kernel of a plan reads them.

    Shapes:
        (depth, columns) of a product, (channels out, channels in, kH, kW) of a convolution.
    """
    if isinstance(plan, GpuProductPlan):
        return pack_product(weights, plan)
    if isinstance(plan, GpuDepthwisePlan):
        return pack_depthwise(weights, plan)
    if isinstance(plan, GpuConvPlan):
        return pack_conv(weights, plan)
    raise TypeError("a pool has no weights")


def write(
    workload: Workload,
    plan: GpuPlan,
    *,
    x_shape: tuple[int, ...] | None = None,
    gate_shape: tuple[int, ...] | None = None,
    y_shape: tuple[int, ...] | None = None,
) -> PrimFunc:
    """Write the kernel of a plan; shapes are those of tensors that are no plain matrices."""
    if isinstance(plan, GpuProductPlan):
        assert isinstance(workload, MatmulWorkload | GatedWorkload)
        return write_product(
            workload, plan, x_shape=x_shape, gate_shape=gate_shape, y_shape=y_shape
        )
    if isinstance(plan, GpuPoolPlan):
        assert isinstance(workload, PoolWorkload)
        return write_pool(workload, plan, x_shape=x_shape, y_shape=y_shape)
    assert isinstance(workload, ConvWorkload)
    if isinstance(plan, GpuDepthwisePlan):
        return write_depthwise(workload, plan)
    return write_conv(workload, plan)
