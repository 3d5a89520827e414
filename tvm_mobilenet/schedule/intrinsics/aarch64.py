"""Integer instructions of AArch64: widening products, dot products, matrix products, narrowing.

Each function returns one TIR expression that LLVM compiles into the instruction it is named after,
or into it together with the addition before or after. What each computes, exactly, is written under
it; source: Arm Architecture Reference Manual for A-profile (DDI 0487), C7.2.
"""

from __future__ import annotations

from tvm_mobilenet._tvm import tirx
from tvm_mobilenet.schedule.emit import Expr
from tvm_mobilenet.schedule.intrinsics.vectors import call, integer, join, part, same_bits

__all__ = [
    "add_pairs",
    "convert_to_nearest",
    "dot_by_lane",
    "look_up",
    "matrix_product",
    "narrow",
    "pairwise_sum",
    "product_of_eight",
    "widening_product",
]

_NEON = "llvm.aarch64.neon"


def dot_by_lane(total: Expr, weights: Expr, values: Expr, lane: int) -> Expr:
    """SDOT by element: int32x4 lane i gains sum over j of weights[4i+j] * values[4*lane+j].

    `weights` and `values` are int8x16. Sums wrap at 32 bits. Needs Armv8.2 with dot product.
    """
    spread = same_bits(tirx.Shuffle([same_bits(values, "int32x4")], [lane] * 4), "int8x16")
    return call("int32x4", f"{_NEON}.sdot.v4i32.v16i8", total, weights, spread)


def matrix_product(total: Expr, left: Expr, right: Expr) -> Expr:
    """SMMLA: int32 2x2 `total` gains left (2x8) times the transpose of right (2x8), int8.

    Rows follow each other in a register. Sums wrap at 32 bits. Needs Armv8.6 or i8mm.
    """
    return call("int32x4", f"{_NEON}.smmla.v4i32.v16i8", total, left, right)


def widening_product(left: Expr, right: Expr, half: int) -> Expr:
    """SMULL or SMULL2: eight exact int16 products of half 0 or 1 of two int8x16.

    Added to another int16x8 it becomes SMLAL or SMLAL2, which wraps at 16 bits: see that the sum
    fits. 128 * 127 + 128 * 127 does, 128 * 128 + 128 * 128 does not.
    """
    operands = (part(left, 8 * half, 8), part(right, 8 * half, 8))
    return call("int16x8", f"{_NEON}.smull.v8i16", *operands)


def product_of_eight(left: Expr, right: Expr) -> Expr:
    """SMULL: eight exact int16 products of two int8x8."""
    return call("int16x8", f"{_NEON}.smull.v8i16", left, right)


def add_pairs(values: Expr) -> Expr:
    """SADDLP: int32x4 of the sums of neighbouring lanes of an int16x8; added to, SADALP."""
    return call("int32x4", f"{_NEON}.saddlp.v4i32.v8i16", values)


def pairwise_sum(left: Expr, right: Expr) -> Expr:
    """ADDP: (l0+l1, l2+l3, r0+r1, r2+r3) of two int32x4."""
    return call("int32x4", f"{_NEON}.addp.v4i32", left, right)


def convert_to_nearest(values: Expr) -> Expr:
    """FCVTNS: float32x4 to int32x4, halves to even, saturating."""
    return call("int32x4", f"{_NEON}.fcvtns.v4i32.v4f32", values)


def look_up(table: list[Expr], indices: Expr, otherwise: Expr | None) -> Expr:
    """TBL or TBX: 16 entries of a table of 64 bytes, four int8x16.

    Where an index, seen as unsigned, is beyond them: 0 (TBL), or what `otherwise` has there (TBX).
    """
    if otherwise is None:
        return call("int8x16", f"{_NEON}.tbl4.v16i8", *table, indices)
    return call("int8x16", f"{_NEON}.tbx4.v16i8", otherwise, *table, indices)


def narrow(values: list[Expr], zero_point: int, dtype: str) -> Expr:
    """SQXTN, SQADD, SQXTN or SQXTUN: int32x4 plus `zero_point` to int8 or uint8, saturating.

    One, two or four vectors become one of 4, 8 or 16 lanes. Equal to the sum clamped to the range
    of `dtype`: what saturates at 16 bits on the way, saturates again at 8. Less 128 is a flipped
    bit (EOR) after narrowing to uint8.
    """
    if dtype == "int8" and zero_point == -128:
        lanes = max(4, 4 * len(values))
        flipped = narrow(values, 0, "uint8") ^ integer(128, "uint8", lanes)
        return same_bits(flipped, f"int8x{lanes}")
    halves = [call("int16x4", f"{_NEON}.sqxtn.v4i16", value) for value in values]
    if len(halves) == 1:
        halves *= 2
    narrowed = []
    for low, high in zip(halves[::2], halves[1::2], strict=True):
        eight = join([low, high], 4)
        if zero_point:
            eight = call("int16x8", "llvm.sadd.sat.v8i16", eight, integer(zero_point, "int16", 8))
        if dtype == "int8":
            narrowed.append(call("int8x8", f"{_NEON}.sqxtn.v8i8", eight))
        else:
            signed = call("int8x8", f"{_NEON}.sqxtun.v8i8", eight)
            narrowed.append(same_bits(signed, "uint8x8"))
    result = join(narrowed, 8)
    return part(result, 0, 4) if len(values) == 1 else result
