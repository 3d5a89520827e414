"""Which instructions an integer kernel uses on a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.integer.requantize import Arithmetic
    from tvm_mobilenet.targets import Cpu

__all__ = ["ProductName", "arithmetic", "best_product", "products_per_instruction"]

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


def products_per_instruction(cpu: Cpu) -> int:
    """Return how many multiply-adds of bytes one instruction of the best product does."""
    lanes = cpu.lanes("int32")
    # SMMLA is four sums of eight, SDOT and VPDPBUSD sum four in each lane; SMLAL takes half a
    # register of bytes, VPMADDWD two 16-bit numbers for each lane.
    return {"smmla": 32, "sdot": 16, "mlal": 8, "vnni": 4 * lanes, "pairs": 2 * lanes}.get(
        best_product(cpu), lanes
    )


def arithmetic(cpu: Cpu) -> Arithmetic:
    """Return whose instructions round and narrow."""
    if cpu.isa == "neon":
        return "neon"
    return "x86" if cpu.isa in ("avx2", "avx512") else "plain"
