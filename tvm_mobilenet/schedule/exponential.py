"""The exponential function on vectors of float32, which no instruction set has.

LLVM would call the C library for each lane. This is the usual split into a power of two and a
polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]; the largest relative error is 2.6e-7.

Reference: Cody and Waite 1980, Software Manual for the Elementary Functions, chapter 6.
"""

from __future__ import annotations

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr, broadcast, constant

__all__ = ["exponential"]

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""Ln 2 in two parts: the first has so few bits that its multiples are exact."""
_SMALLEST, _LARGEST = -87.0, 88.0
"""Beyond them the result is no normal number; there is nothing to gain from telling them apart."""
_COEFFICIENTS = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_EXPONENT_BITS = 23
_BIAS = 127


def exponential(x: Expr, lanes: int) -> Expr:
    """Return e to the power of each lane of `x`, which are taken to lie between -87 and 88."""

    def number(value: float) -> Expr:
        return constant(value, "float32", lanes)

    integer = "int32" if lanes == 1 else f"int32x{lanes}"
    floating = "float32" if lanes == 1 else f"float32x{lanes}"
    bounded = T.Bind(T.min(T.max(x, number(_SMALLEST)), number(_LARGEST)))
    power = T.Bind(tirx.floor(bounded * number(_LOG2_E) + number(0.5)))
    rest = T.Bind(bounded - power * number(_LN2_HIGH) - power * number(_LN2_LOW))
    value = number(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        value = value * rest + number(coefficient)
    bias = broadcast(tirx.IntImm("int32", _BIAS), lanes)
    shift = broadcast(tirx.IntImm("int32", 1 << _EXPONENT_BITS), lanes)
    scale = tirx.reinterpret(floating, (tirx.Cast(integer, power) + bias) * shift)
    return T.Bind(value * scale)
