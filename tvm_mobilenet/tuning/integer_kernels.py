"""One integer workload and one plan: the kernel that is built, and what it is called with.

What a kernel reads is laid out for its plan, and how depends on the weights as well: those of the
seeded operands, for which it is written and with which it is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_mobilenet._tvm import PrimFunc
from tvm_mobilenet.schedule.integer.convolution import pack_integer_conv, write_integer_conv
from tvm_mobilenet.schedule.integer.depthwise import (
    IntegerDepthwisePlan,
    pack_integer_depthwise,
    write_integer_depthwise,
)
from tvm_mobilenet.schedule.integer.elementwise import (
    ElementwisePlan,
    write_integer_add,
    write_integer_pool,
    write_quantize,
)
from tvm_mobilenet.schedule.integer.matmul import (
    IntegerMatmulPlan,
    pack_integer_matmul,
    write_integer_matmul,
)
from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
)
from tvm_mobilenet.tuning.integer_reference import integer_operands, integer_output
from tvm_mobilenet.tuning.operands import Operands

__all__ = ["IntegerPlan", "packed_inputs", "write_integer"]

IntegerPlan = IntegerMatmulPlan | IntegerDepthwisePlan | ElementwisePlan

SEED = 0
"""Of the operands that a kernel is written for; the measurers' own."""


def write_integer(workload: IntegerWorkload, plan: IntegerPlan) -> PrimFunc:
    """Write the kernel of a plan, for weights such as the seeded ones."""
    w = workload
    if isinstance(w, IntegerMatmulWorkload | IntegerConvWorkload):
        packed = _pack(w, plan, integer_operands(w, SEED))
        if isinstance(w, IntegerMatmulWorkload):
            return write_integer_matmul(w, packed)
        return (write_integer_depthwise if w.is_depthwise else write_integer_conv)(w, packed)
    assert isinstance(plan, ElementwisePlan)
    shape, _ = integer_output(w)
    if isinstance(w, IntegerAddWorkload):
        return write_integer_add(w, plan, shape=shape)
    if isinstance(w, IntegerPoolWorkload):
        x_shape = (w.batch, 1, w.pixels, w.channels)
        return write_integer_pool(w, plan, x_shape=x_shape, y_shape=shape)
    x_shape = (w.batch, w.channels, 1, w.pixels)
    return write_quantize(w, plan, x_shape=x_shape, y_shape=shape)


def packed_inputs(
    workload: IntegerWorkload, plan: IntegerPlan, operands: Operands
) -> list[np.ndarray]:
    """Return the arguments of a kernel but its output; weights follow after the first."""
    if isinstance(workload, IntegerMatmulWorkload | IntegerConvWorkload):
        return [operands.x, *_pack(workload, plan, operands).arrays]
    return [operands.x] if operands.residual is None else [operands.x, operands.residual]


def _pack(
    w: IntegerMatmulWorkload | IntegerConvWorkload, plan: IntegerPlan, operands: Operands
) -> Any:
    assert operands.weights is not None
    rest: tuple[Any, ...] = (operands.bias, operands.scale, w.dtype, plan)
    if isinstance(w, IntegerMatmulWorkload):
        return pack_integer_matmul(operands.weights, *rest)
    if w.is_depthwise:
        return pack_integer_depthwise(operands.weights[..., 0], *rest)
    return pack_integer_conv(operands.weights, *rest)
