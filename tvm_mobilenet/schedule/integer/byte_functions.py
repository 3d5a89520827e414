"""Functions of one byte: what a tensor of bytes goes through element by element, as 256 results.

Whatever lies between one tensor of 8 bits and another, hard-swish, hard-sigmoid and their product
with the tensor itself among it, is a function of 256 values if it reads nothing else but constants.
It is evaluated here in float32, operator by operator and rounded after each, as ONNX Runtime does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import constant_array, static_shape
from tvm_mobilenet.schedule.integer.workload import RANGES

__all__ = ["ByteFunctions"]


class ByteFunctions:
    """Finds functions of one byte in a module.

    Args:
        definitions: the value bound to each variable.
    """

    def __init__(self, definitions: Mapping[Any, Any]) -> None:
        self._definitions = definitions

    def source_of(self, out: Any) -> Any | None:
        """Return the tensor of bytes that alone `out`, bytes too, is computed from, or None."""
        sources = self._sources(out, set())
        if sources is None or len(sources) > 2:
            return None
        if len(sources) == 2:
            # A product with its own activation: one of the two is a function of the other.
            first, second = sources
            for x, other in ((first, second), (second, first)):
                if self._sources(other, set()) == {x}:
                    return x
            return None
        return next(iter(sources), None)

    def table(self, out: Any, x: Any) -> np.ndarray:
        """Return what `out` is for each value of `x`, indexed by its bits taken as a number."""
        bits = np.arange(256, dtype=np.uint8)
        known = {x: bits.view(np.dtype(str(x.ty.dtype)))}
        return np.ascontiguousarray(self._evaluate(out, known))

    def _sources(self, var: Any, seen: set[Any]) -> set[Any] | None:
        """Return the bytes that a variable is computed from; None if there is anything else."""
        call = self._definitions.get(var)
        if not isinstance(call, relax.Call) or _name(call) not in _OPERATORS:
            return None
        found: set[Any] = set()
        for arg in call.args:
            array = constant_array(arg)
            if array is not None:
                if array.size != 1:
                    return None
            elif not isinstance(arg, relax.Var) or static_shape(arg) != static_shape(var):
                return None
            elif str(arg.ty.dtype) in RANGES:
                found.add(arg)
            elif arg not in seen:
                seen.add(arg)
                inner = self._sources(arg, seen)
                if inner is None:
                    return None
                found |= inner
        return found

    def _evaluate(self, expr: Any, known: dict[Any, np.ndarray]) -> np.ndarray:
        if expr in known:
            return known[expr]
        array = constant_array(expr)
        if array is not None:
            return array.reshape(())
        call = self._definitions[expr]
        values = [self._evaluate(arg, known) for arg in call.args]
        dtype = np.dtype(str(expr.ty.dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            known[expr] = np.asarray(_OPERATORS[_name(call)](*values)).astype(dtype)
        return known[expr]


def _name(call: Any) -> str:
    return str(getattr(call.op, "name", "")).removeprefix("relax.")


_OPERATORS: dict[str, Callable[..., Any]] = {
    "astype": lambda x: x,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "round": np.rint,
    "negative": np.negative,
    "abs": np.abs,
}
"""Operators that IEEE defines to the last bit; exponentials differ from library to library."""
