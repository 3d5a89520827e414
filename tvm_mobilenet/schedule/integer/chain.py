"""Follow integer arithmetic from a sum of products to the bytes that it is rounded to.

The forms are those of `tvm_mobilenet/frontend/passes/integer`. What deviates is left alone and
computed as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_mobilenet.frontend.dataflow import Binding, constant_array, is_call, static_shape
from tvm_mobilenet.schedule.integer.workload import RANGES, IntegerDtype, Requantize

__all__ = ["IntegerTail", "TailFollower", "element_type", "scalar"]


@dataclass
class IntegerTail:
    """An int32 tensor and the bindings after it that its kernel takes over."""

    last: Any
    members: list[Any] = field(default_factory=list)
    bias: np.ndarray | None = None
    """int32, one number or one a channel."""
    scale: np.ndarray | None = None
    """float32, likewise; None where the tail does not reach that far."""
    requantize: Requantize | None = None
    """None where the float32 product is the result."""


def element_type(expr: Any) -> str:
    """Return the dtype of a tensor."""
    return str(expr.ty.dtype)


def scalar(expr: Any) -> float | None:
    """Return a constant of one element, or None."""
    array = constant_array(expr)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


class TailFollower:
    """Finds the tails of one module.

    Args:
        users: the bindings that read each variable; an output of the module is a binding whose
            variable is None.
    """

    def __init__(self, users: Mapping[Any, Sequence[Binding]]) -> None:
        self._users = users

    def follow(self, total: Any) -> IntegerTail | None:
        """Follow an int32 tensor: bias, astype, multiply, and `rounding` if it is there."""
        tail = IntegerTail(total, [total])
        reader = self._reader(tail.last)
        if reader is not None and is_call(reader.value, "add"):
            bias = self._constant(reader.value, tail.last)
            if bias is None or bias.dtype != np.int32:
                return None
            tail.bias = bias.reshape(-1)
            reader = self._take(tail, reader)
        if reader is None or not is_call(reader.value, "astype"):
            return None
        if element_type(reader.var) != "float32":
            return None
        reader = self._take(tail, reader)
        if reader is None or not is_call(reader.value, "multiply"):
            return None
        scale = self._constant(reader.value, tail.last)
        if scale is None or scale.dtype != np.float32:
            return None
        tail.scale = scale.reshape(-1)
        reader = self._take(tail, reader)
        if reader is not None and is_call(reader.value, "round"):
            self.rounding(tail, reader)
        return tail

    def rounding(self, tail: IntegerTail, reader: Binding) -> bool:
        """Follow round, add(zero point), maximum, minimum, astype; all of it or nothing."""
        rest = IntegerTail(tail.last)
        zero_point, following = 0.0, self._take(rest, reader)
        if following is not None and is_call(following.value, "add"):
            found = self._scalar(following.value, rest.last)
            if found is None:
                return False
            zero_point, following = found, self._take(rest, following)
        bounds = []
        for name in ("maximum", "minimum"):
            if following is None or not is_call(following.value, name):
                return False
            found = self._scalar(following.value, rest.last)
            if found is None:
                return False
            bounds.append(found)
            following = self._take(rest, following)
        if following is None or not is_call(following.value, "astype"):
            return False
        dtype = element_type(following.var)
        low, high = bounds
        if dtype not in RANGES or not all(n.is_integer() for n in (zero_point, low, high)):
            return False
        least, greatest = RANGES[dtype]
        if not least <= low <= high <= greatest or not least <= zero_point <= greatest:
            return False
        self._take(rest, following)
        byte: IntegerDtype = "int8" if dtype == "int8" else "uint8"
        tail.requantize = Requantize(
            dtype=byte, zero_point=int(zero_point), low=int(low), high=int(high)
        )
        tail.last = rest.last
        tail.members.extend(rest.members)
        return True

    def _take(self, tail: IntegerTail, reader: Binding) -> Binding | None:
        tail.last = reader.var
        tail.members.append(reader.var)
        return self._reader(reader.var)

    def _reader(self, var: Any) -> Binding | None:
        """Return the binding that alone reads a variable."""
        readers = self._users.get(var, [])
        return readers[0] if len(readers) == 1 and readers[0].var is not None else None

    def _constant(self, call: Any, var: Any) -> np.ndarray | None:
        """Return the other operand: one number, or one for each channel of `var`."""
        other = call.args[1] if call.args[0].same_as(var) else call.args[0]
        array = constant_array(other)
        if array is None:
            return None
        channels = static_shape(var)[-1]
        if array.size == 1 or (array.size == channels and array.shape[-1] == channels):
            return array
        return None

    def _scalar(self, call: Any, var: Any) -> float | None:
        return scalar(call.args[1] if call.args[0].same_as(var) else call.args[0])
