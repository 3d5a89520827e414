"""Which instructions an integer kernel uses on a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.requantize import Arithmetic
    from tvm_mobilenet.targets import Cpu

__all__ = ["ProductName", "arithmetic", "best_product"]

ProductName = Literal["sdot", "smmla", "mlal", "vnni", "pairs", "plain"]


def best_product(cpu: Cpu) -> ProductName:
    """Return the product with the most multiply-adds for each instruction."""
    if cpu.isa == "neon":
        if cpu.has_i8mm:
            return "smmla"
        return "sdot" if cpu.has_dot_product else "mlal"
    if cpu.isa in ("avx2", "avx512"):
        return "vnni" if cpu.has_dot_product else "pairs"
    return "plain"


def arithmetic(cpu: Cpu) -> Arithmetic:
    """Return whose instructions round and narrow."""
    if cpu.isa == "neon":
        return "neon"
    return "x86" if cpu.isa in ("avx2", "avx512") else "plain"
