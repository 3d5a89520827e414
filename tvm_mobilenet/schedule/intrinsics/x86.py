"""Integer instructions of x86: dot products of VNNI, products of pairs, conversion, packing.

LLVM 22 declares the VNNI intrinsics with byte vectors; what each computes, exactly, is written
under it. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2.
"""

from __future__ import annotations

from tvm_mobilenet._tvm import tirx
from tvm_mobilenet.schedule.emit import Expr
from tvm_mobilenet.schedule.intrinsics.vectors import call, integer, same_bits

__all__ = ["convert_to_nearest", "dot", "narrow", "product_of_pairs", "spread"]


def spread(values: Expr, dtype: str, lanes: int) -> Expr:
    """VPBROADCASTD: four bytes of memory in every 32-bit lane, seen as `lanes` of `dtype`."""
    bits = 8 if "8" in dtype else 16
    return same_bits(
        tirx.Broadcast(same_bits(values, "int32"), lanes * bits // 32), f"{dtype}x{lanes}"
    )


def dot(total: Expr, values: Expr, weights: Expr, lanes: int) -> Expr:
    """VPDPBUSD: int32 lane i gains the sum of 4 products of uint8 `values` and int8 `weights`.

    Products are exact and so are sums, which wrap at 32 bits alone (VPDPBUSDS would saturate).
    `lanes` is 16 (AVX-512 VNNI), 8 or 4 (AVX-VNNI, or AVX-512 VNNI with VL).
    """
    bits = 32 * lanes
    name = f"llvm.x86.avx512.vpdpbusd.{bits}"
    return call(f"int32x{lanes}", name, total, values, weights)


def product_of_pairs(left: Expr, right: Expr, lanes: int) -> Expr:
    """VPMADDWD: int32 lane i is l[2i] * r[2i] + l[2i+1] * r[2i+1] of int16.

    Exact but where all four are -32768, which widened bytes are not.
    """
    name = {
        4: "llvm.x86.sse2.pmadd.wd",
        8: "llvm.x86.avx2.pmadd.wd",
        16: "llvm.x86.avx512.pmaddw.d.512",
    }[lanes]
    return call(f"int32x{lanes}", name, left, right)


def convert_to_nearest(values: Expr, lanes: int) -> Expr:
    """VCVTPS2DQ: float32 to int32, halves to even; what does not fit becomes -2**31."""
    return call(f"int32x{lanes}", f"llvm.lrint.v{lanes}i32.v{lanes}f32", values)


def narrow(values: Expr, zero_point: int, dtype: str, lanes: int) -> Expr:
    """Add, clamp and truncate int32 to int8 or uint8; LLVM finds VPACKSSDW or VPMOVDB for it.

    `values` must be clamped far enough for the sum not to wrap.
    """
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    least, greatest = integer(low, "int32", lanes), integer(high, "int32", lanes)
    moved = values + integer(zero_point, "int32", lanes) if zero_point else values
    clamped = tirx.Max(tirx.Min(moved, greatest), least)
    return tirx.Cast(f"{dtype}x{lanes}" if lanes > 1 else dtype, clamped)
