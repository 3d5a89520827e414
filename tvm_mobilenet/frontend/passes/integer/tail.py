"""What follows an operator, as far as it can be had with it: bias, bounds and a quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tvm_mobilenet.frontend.dataflow import Binding, constant_array, is_call, static_shape
from tvm_mobilenet.frontend.passes.quantized import QuantizedConstant, QuantizedTensor

__all__ = ["Tail", "TailFollower"]


@dataclass
class Tail:
    """What follows an operator, as far as it can be had with it."""

    last: Any
    members: list[Any] = field(default_factory=list)
    bias: Any = None
    low: float = -np.inf
    high: float = np.inf
    quantize: Any = None
    """The call at the end, where the chain ends in one."""
    out: QuantizedTensor | None = None
    """What the end is quantized to; its variable is the quantize's."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The activation's bounds in steps of the result."""
        assert self.out is not None
        low = -np.inf if self.low == -np.inf else self.out.step(self.low)
        high = np.inf if self.high == np.inf else self.out.step(self.high)
        assert low is not None
        assert high is not None
        return low, high

    @property
    def has_bounds(self) -> bool:
        """Whether the bounds are the same for all channels of the result."""
        assert self.out is not None
        return all(
            np.isinf(bound) or self.out.step(bound) is not None for bound in (self.low, self.high)
        )


class TailFollower:
    """Follows single readers.

    Args:
        users: the bindings that read each variable; an output's has None for its variable.
        values: the value bound to each variable.
        constants: quantized constants by the float variable that stands for them, as the walk
            finds them.
    """

    def __init__(
        self,
        users: Mapping[Any, Sequence[Binding]],
        values: Mapping[Any, Any],
        constants: Mapping[Any, QuantizedConstant],
    ) -> None:
        self._users = users
        self._values = values
        self._constants = constants

    def follow(
        self, var: Any, *, biased: bool = False, channels: int = 0, quantized: bool = True
    ) -> Tail:
        """Follow single readers: a bias, bounds, a quantize. Without the last, the bias alone."""
        tail = Tail(var)
        reader = self._single_reader(var)
        if biased and reader is not None and is_call(reader.value, "add"):
            bias = self._channel_constant(reader.value, var, channels)
            if bias is not None:
                tail.bias, tail.last = bias, reader.var
                tail.members.append(reader.var)
                reader = self._single_reader(reader.var)
        without = replace(tail, members=list(tail.members))
        while reader is not None and is_call(reader.value, "maximum", "minimum"):
            bound = constant_array(reader.value.args[1])
            if bound is None or bound.size != 1:
                return without
            value = float(bound.reshape(()))
            if is_call(reader.value, "maximum"):
                # After an upper bound a lower one wins; here the lower one comes first.
                if tail.high < value:
                    return without
                tail.low = max(tail.low, value)
            else:
                if value < tail.low:
                    return without
                tail.high = min(tail.high, value)
            tail.last = reader.var
            tail.members.append(reader.var)
            reader = self._single_reader(reader.var)
        if reader is None or not is_call(reader.value, "quantize") or not quantized:
            return without
        tail.last, tail.quantize = reader.var, reader.value
        tail.members.append(reader.var)
        return tail

    def _single_reader(self, var: Any) -> Binding | None:
        readers = self._users.get(var, [])
        return readers[0] if len(readers) == 1 and readers[0].var is not None else None

    def _channel_constant(
        self, call: Any, var: Any, channels: int
    ) -> np.ndarray | QuantizedConstant | None:
        """Return the other operand of a sum if it is a bias: one number a channel, or one."""
        other = call.args[1] if call.args[0].same_as(var) else call.args[0]
        value = self._values.get(other)
        inner = value.args[0] if is_call(value, "reshape") else other
        constant = self._constants.get(inner)
        found = constant.array if constant is not None else constant_array(other)
        if found is None or found.size not in (1, channels):
            return None
        shape, rank = static_shape(other), len(static_shape(var))
        axis = 1 if rank == 4 else rank - 1
        spread = (1,) * (rank - len(shape)) + tuple(shape)
        if len(shape) > rank or any(n != 1 for i, n in enumerate(spread) if i != axis):
            return None
        return constant if constant is not None else found
