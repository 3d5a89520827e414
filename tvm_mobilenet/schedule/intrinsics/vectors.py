"""Vectors cut, joined and seen as another type: what every instruction set needs.

None of these is an instruction by itself; LLVM folds them into the instructions around them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr

__all__ = ["call", "integer", "join", "part", "same_bits", "widen"]


def call(dtype: str, name: str, *operands: Expr) -> Expr:
    """Return a call of an LLVM intrinsic without side effects, by its name in LLVM's own IR."""
    return T.call_llvm_pure_intrin(dtype, name, *operands)


def integer(value: int, dtype: str, lanes: int) -> Expr:
    """Return a vector that holds an integer in every lane."""
    scalar = tirx.IntImm(dtype, value)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def part(vector: Expr, start: int, count: int) -> Expr:
    """Return `count` lanes of a vector, from lane `start` on."""
    return tirx.Shuffle([vector], list(range(start, start + count)))


def join(vectors: Sequence[Expr], lanes: int) -> Expr:
    """Return vectors of `lanes` lanes each as one."""
    if len(vectors) == 1:
        return vectors[0]
    return tirx.Shuffle(list(vectors), list(range(lanes * len(vectors))))


def same_bits(value: Expr, dtype: str) -> Expr:
    """Return the same bits as another type of the same size."""
    return T.reinterpret(dtype, value)


def widen(vector: Expr, dtype: str, lanes: int) -> Expr:
    """Return the same numbers in another type."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", vector)
