"""The gate of squeeze-and-excite in integers: each channel of an image times one number.

Sixteen channels of the gate stay in registers while the pixels pass.
"""

from __future__ import annotations

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
from tvm_mobilenet.schedule.integer.elementwise import (
    ElementwisePlan,
    narrow,
    pieces,
    plan_elementwise,
)
from tvm_mobilenet.schedule.integer.workload import IntegerScaleWorkload
from tvm_mobilenet.schedule.intrinsics.vectors import integer, widen

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["plan_integer_scale", "write_integer_scale"]


def plan_integer_scale(workload: IntegerScaleWorkload, cpu: Cpu) -> ElementwisePlan:
    """Compute the plan: threads where what they save is more than starting them costs."""
    return plan_elementwise(workload, cpu)


def write_integer_scale(
    workload: IntegerScaleWorkload,
    plan: ElementwisePlan,
    *,
    x_shape: tuple[int, ...],
    gate_shape: tuple[int, ...],
) -> PrimFunc:
    """Write the kernel (x, gate) -> y.

    Products of two centred bytes are exact in 32 bits and in float32; the product with the factor
    is rounded once, as in the float32 form.
    """
    w = workload
    parameters = [
        Parameter("x", x_shape, w.x_dtype),
        Parameter("gate", gate_shape, w.gate_dtype),
        Parameter("y", x_shape, w.requantize.dtype),
    ]

    def body(kernel: KernelWriter) -> None:
        def centred(name: str, at: Expr, count: int) -> Expr:
            zero = w.x_zero_point if name == "x" else w.gate_zero_point
            wide = widen(kernel[name].load(at, count), "int16", count)
            return wide - integer(zero, "int16", count) if zero else wide

        def channels(image: Expr, channel: Expr, count: int) -> None:
            width = min(count, plan.lanes)
            gates = Registers(max(1, count // width), "int32", width)
            gate = centred("gate", image * w.channels + channel, count)
            for index, (piece, lanes) in enumerate(pieces(gate, count, width)):
                gates[index] = widen(piece, "int32", lanes)
            with T.serial(0, w.pixels) as pixel:
                at = (image * w.pixels + pixel) * w.channels + channel
                steps = [
                    widen(widen(piece, "int32", lanes) * gates[index], "float32", lanes)
                    * constant(w.factor, "float32", lanes)
                    for index, (piece, lanes) in enumerate(
                        pieces(centred("x", at, count), count, width)
                    )
                ]
                narrow(kernel["y"], at, steps, width, w.requantize, plan.arithmetic)

        full = w.channels // plan.block
        with T.serial(0, w.batch) as image:
            if full:
                with task_loop(full, plan.tasks > 1) as index:
                    channels(image, index * plan.block, plan.block)
            for offset, count in split_lanes(w.channels, plan.block)[full:]:
                channels(image, offset, count)

    return write_kernel(w.x_dtype, parameters, body)
