"""Integer instructions of x86: dot products of VNNI, products of pairs, conversion, packing.

LLVM 22 declares the VNNI intrinsics with byte vectors; what each computes, exactly, is written
under it. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm_mobilenet._tvm import tirx
from tvm_mobilenet.schedule.emit import Expr
from tvm_mobilenet.schedule.intrinsics.vectors import call, integer, same_bits

__all__ = [
    "convert_to_nearest",
    "dot",
    "interleave",
    "interleaved_order",
    "narrow",
    "narrow_four",
    "product_of_pairs",
    "spread",
]

_LANE_BYTES = 16
"""Instructions that unpack and pack work within 128 bits."""


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


def narrow_four(values: Sequence[Expr], zero_point: int, dtype: str, lanes: int) -> Expr:
    """VPACKSSDW, VPADDSW, VPACKUSWB or VPACKSSWB: four int32 vectors plus `zero_point` to bytes.

    Equal to the sum clamped to the range of `dtype`: what saturates at 16 bits on the way saturates
    again at 8. The bytes lie as `interleave` reads them, that is, in each 128 bits four of every
    vector: byte 16k + 4v + j is lane 4k + j of vector v.
    """
    prefix, suffix = {
        4: ("sse2", ".128"),
        8: ("avx2", ""),
        16: ("avx512", ".512"),
    }[lanes]
    name = f"llvm.x86.{prefix}"
    halves = []
    for low, high in (values[:2], values[2:]):
        half = call(f"int16x{2 * lanes}", f"{name}.packssdw{suffix}", low, high)
        if zero_point:
            added = integer(zero_point, "int16", 2 * lanes)
            half = call(f"int16x{2 * lanes}", f"llvm.sadd.sat.v{2 * lanes}i16", half, added)
        halves.append(half)
    pack = "packsswb" if dtype == "int8" else "packuswb"
    return call(f"{dtype}x{4 * lanes}", f"{name}.{pack}{suffix}", *halves)


def interleave(pixels: Sequence[Expr], lanes: int) -> list[Expr]:
    """VPUNPCKLBW to VPUNPCKHWD: four vectors of bytes, byte by byte side by side.

    Lane 4k + j of int32 vector v holds the four bytes 16k + 4v + j. Two instructions for each of
    the four results.
    """
    count = 4 * lanes

    def unpack(left: Expr, right: Expr, width: int, half: int) -> Expr:
        """Take elements of `width` bytes in turns from one half of each 128 bits."""
        elements, in_lane = count // width, _LANE_BYTES // width
        order = [
            base + half * in_lane // 2 + index // 2 + (elements if index % 2 else 0)
            for base in range(0, elements, in_lane)
            for index in range(in_lane)
        ]
        return tirx.Shuffle([left, right], order)

    a, b, c, d = pixels
    result = []
    for half in range(2):
        first, second = (
            same_bits(unpack(left, right, 1, half), f"int16x{count // 2}")
            for left, right in ((a, b), (c, d))
        )
        for quarter in range(2):
            result.append(same_bits(unpack(first, second, 2, quarter), f"uint8x{count}"))
    return result


def interleaved_order(lanes: int) -> list[int]:
    """Return which byte each lane of `interleave`'s four results belongs to, results in turn."""
    return [
        16 * block + 4 * vector + lane
        for vector in range(4)
        for block in range(lanes // 4)
        for lane in range(4)
    ]
