"""A function of one byte as a kernel: a table of 256 results, looked up sixteen at a time.

On AArch64 the table fills 16 registers, four of which one instruction looks into: TBL gives 0 where
an index is beyond them, TBX what is there already. Sixteen results take four look-ups and three
exclusive ors, whatever the function is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc
from tvm_mobilenet.schedule.emit import Expr, KernelWriter, Parameter, Registers, write_kernel
from tvm_mobilenet.schedule.integer.elementwise import (
    ElementwisePlan,
    plan_elementwise,
    write_blocks,
)
from tvm_mobilenet.schedule.integer.workload import IntegerTableWorkload
from tvm_mobilenet.schedule.intrinsics.aarch64 import look_up
from tvm_mobilenet.schedule.intrinsics.vectors import integer, same_bits

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["can_look_up", "plan_table", "write_table"]

_LANES = 16


def can_look_up(cpu: Cpu) -> bool:
    """Tell whether a processor looks up sixteen bytes at once; others compute the function."""
    return cpu.isa == "neon"


def plan_table(workload: IntegerTableWorkload, cpu: Cpu) -> ElementwisePlan:
    """Compute the plan: threads where what they save is more than starting them costs."""
    return plan_elementwise(workload, cpu)


def write_table(
    workload: IntegerTableWorkload, plan: ElementwisePlan, *, shape: tuple[int, ...]
) -> PrimFunc:
    """Write the kernel (x, table) -> y, x and y of one shape."""
    w = workload
    parameters = [
        Parameter("x", shape, w.x_dtype),
        Parameter("table", (256,), w.y_dtype),
        Parameter("y", shape, w.y_dtype),
    ]

    def body(kernel: KernelWriter) -> None:
        rows = Registers(_LANES, "int8", _LANES)

        def load_table() -> None:
            for row in range(_LANES):
                values = kernel["table"].load(row * _LANES, _LANES)
                rows[row] = same_bits(values, f"int8x{_LANES}")

        def block(at: Expr, count: int) -> None:
            if count < _LANES:
                for index in range(count):
                    bits = same_bits(kernel["x"].load(at + index), "uint8")
                    kernel["y"].store(at + index, kernel["table"].load(bits.astype("int32")))
                return
            indices = same_bits(kernel["x"].load(at, _LANES), f"int8x{_LANES}")
            found = None
            for first in range(0, _LANES, 4):
                moved = indices ^ integer(_signed(16 * first), "int8", _LANES)
                entries = [rows[first + row] for row in range(4)]
                found = look_up(entries, moved if first else indices, found)
            kernel["y"].store(at, same_bits(found, f"{w.y_dtype}x{_LANES}"), _LANES)

        write_blocks(w.elements, plan, block, begin=load_table)

    return write_kernel(w.x_dtype, parameters, body)


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte
