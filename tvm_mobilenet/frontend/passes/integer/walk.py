"""What a walk over a quantized model knows: which integers stand for which float tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow, constant_array, is_call, static_shape
from tvm_mobilenet.frontend.passes.integer.tail import Tail, TailFollower
from tvm_mobilenet.frontend.passes.islands import Islands
from tvm_mobilenet.frontend.passes.quantized import (
    QuantizedConstant,
    QuantizedTensor,
    Steps,
    quantization_of,
    round_constant,
)

__all__ = ["Walk"]

_BYTE = ("int8", "uint8")


class Walk:
    """One walk over a module, in order.

    Args:
        flow: the module's bindings.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.steps = Steps()
        self.replaced: dict[Any, Any] = {}
        self.done: set[Any] = set()
        """Variables that what was written before them has taken over."""
        self.islands = Islands()
        self.tensors: dict[Any, QuantizedTensor] = {}
        """By the float variable that stands for them."""
        self.constants: dict[Any, QuantizedConstant] = {}
        self._params = flow.params
        self._values = flow.definitions()
        self._tails = TailFollower(flow.users(), self._values, self.constants)
        self._integers: dict[Any, QuantizedTensor] = {}
        """By the variable of integers, as it was."""
        self._rounded: dict[Any, np.ndarray] = {}
        """Float constants that the file leaves to be quantized."""

    def dequantize(self, binding: Binding) -> None:
        """Remember what a dequantize makes of integers, or fold it into a constant."""
        var, call = binding.var, binding.value
        scale, zero_point, _ = quantization_of(call, f"DequantizeLinear {var.name!r}")
        source = call.args[0]
        array = self._rounded.get(source)
        if array is None:
            array = constant_array(source)
        if array is not None:
            constant = QuantizedConstant(array, scale, zero_point, int(call.attrs.axis))
            self.constants[var] = constant
            self.steps.bind(var, relax.const(constant.floats()))
            return
        found = _as_tensor("DequantizeLinear", var, source, call)
        tensor = self._integers.get(source)
        if tensor is None or not self._is_of(source, found):
            tensor = found
        self.stands_for(var, tensor)

    def _is_of(self, source: Any, found: QuantizedTensor) -> bool:
        """Tell whether integers are read back with the scale that they were written with."""
        made = self._values[source]
        return is_call(made, "quantize") and self._target(source, made).same_as(found)

    def stands_for(self, var: Any, tensor: QuantizedTensor) -> None:
        """Remember a float variable's integers; its own arithmetic goes if nothing reads it."""
        self.tensors[var] = tensor
        self.steps.dequantize(var, tensor)

    def _target(self, var: Any, call: Any) -> QuantizedTensor:
        """Return what a quantize makes."""
        return _as_tensor("QuantizeLinear", var, var, call)

    def quantize(self, binding: Binding) -> None:
        """Quantize what is float32, or leave integers as they are where nothing changes."""
        weights = self._constant(binding.value.args[0])
        if weights is not None:
            where = f"QuantizeLinear {binding.var.name!r}"
            integers = round_constant(weights, binding.value, where)
            self._rounded[binding.var] = integers
            self.steps.bind(binding.var, relax.const(integers))
            return
        x, out = binding.value.args[0], self._target(binding.var, binding.value)
        known = self.tensors.get(x)
        if known is not None and known.same_as(out):
            self.becomes(binding.var, known)
            return
        name = binding.var.name
        if any(x.same_as(param) for param in self._params):
            scaled = self.steps.emit(
                f"{name}_scaled", relax.op.divide(x, relax.const(out.spread_scale, "float32"))
            )
        else:
            factor = relax.const(np.float32(1) / out.spread_scale, "float32")
            scaled = self.steps.emit(f"{name}_scaled", relax.op.multiply(x, factor))
        self.islands.quantized(x)
        self.becomes(binding.var, self.steps.round_and_clip(scaled, out, name))

    def _constant(self, expr: Any) -> np.ndarray | None:
        known = self.constants.get(expr)
        return known.floats() if known is not None else constant_array(expr)

    def becomes(self, var: Any, tensor: QuantizedTensor) -> None:
        """Put integers in the place of what a quantize made."""
        self.replaced[var] = tensor.var
        self._integers[var] = tensor
        self.done.add(var)

    def tail(self, var: Any, *, biased: bool = False, channels: int = 0) -> Tail:
        """Return what follows an operator; `biased` with a bias of so many channels."""
        tail = self._tails.follow(var, biased=biased, channels=channels)
        if tail.quantize is None:
            return tail
        tail.out = self._target(tail.last, tail.quantize)
        if tail.has_bounds and (biased or not tail.out.is_by_channel):
            return tail
        return self._tails.follow(var, biased=biased, channels=channels, quantized=False)

    def requantize(
        self, integers: Any, tail: Tail, unit: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        """End an int32 result in steps of `unit` as its tail says."""
        name = tail.last.name
        x = self.steps.emit(f"{name}_float", relax.op.astype(integers, "float32"))
        self.done.update(tail.members)
        if tail.out is None:
            factor = relax.const(unit.astype(np.float32).reshape(shape))
            self.steps.bind(tail.last, relax.op.multiply(x, factor))
            return
        factor = relax.const((unit / tail.out.scale).astype(np.float32).reshape(shape))
        scaled = self.steps.emit(f"{name}_scaled", relax.op.multiply(x, factor))
        self.becomes(tail.last, self.steps.round_and_clip(scaled, tail.out, name, tail.bounds))

    def moved(self, tail: Tail, var: Any, out: QuantizedTensor, float_var: Any) -> None:
        """Put moved integers in the place of a float variable, or of what its tail quantizes to."""
        tensor = replace(out, var=var)
        if tail.out is None:
            self.stands_for(float_var, tensor)
            return
        self.done.update(tail.members)
        self.becomes(tail.last, tensor)


def _as_tensor(operator: str, var: Any, integers: Any, call: Any) -> QuantizedTensor:
    """Return what a quantize or dequantize says of integers."""
    scale, zero_point, dtype = quantization_of(call, f"{operator} {var.name!r}")
    is_by_channel = scale.size > 1
    is_alike = (zero_point == zero_point.flat[0]).all()
    is_of_images = len(static_shape(var)) == 4 and int(call.attrs.axis) % 4 == 1
    if dtype not in _BYTE or (is_by_channel and not (is_alike and is_of_images)):
        raise _unsupported(operator, var, scale, dtype)
    shape = (-1,) if is_by_channel else ()
    return QuantizedTensor(integers, scale.reshape(shape), int(zero_point.flat[0]), dtype)


def _unsupported(operator: str, var: Any, scale: np.ndarray, dtype: str) -> UnsupportedOpError:
    if dtype not in _BYTE:
        return UnsupportedOpError(
            f"operator {operator} (tensor {var.name!r}) cannot be handled: activations of {dtype}; "
            "quantize them to int8 or uint8"
        )
    return UnsupportedOpError(
        f"operator {operator} (tensor {var.name!r}) cannot be handled: activations with "
        f"{scale.size} scales; quantize activations with one scale for each tensor, or for each "
        "channel of an image with one zero point"
    )
