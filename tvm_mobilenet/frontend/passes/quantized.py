"""Integers with a scale and a zero point, and the arithmetic to get there and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import Binding, constant_array

__all__ = [
    "QuantizedConstant",
    "QuantizedTensor",
    "Steps",
    "quantization_of",
    "round_constant",
]

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True)
class QuantizedTensor:
    """A variable of integers q that stand for (q - zero_point) * scale."""

    var: Any
    scale: np.ndarray
    """float32: one number, of no dimension, or one for each channel of an NCHW tensor, (C,)."""
    zero_point: int
    dtype: str
    """`int8` or `uint8`."""

    @property
    def is_by_channel(self) -> bool:
        """Whether every channel has a scale of its own."""
        return self.scale.size > 1

    @property
    def spread_scale(self) -> np.ndarray:
        """The scale in the shape that goes with the tensor."""
        return self.scale.reshape(1, -1, 1, 1) if self.is_by_channel else self.scale

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        return _RANGES[self.dtype]

    def same_as(self, other: QuantizedTensor) -> bool:
        """Tell whether equal integers stand for equal numbers."""
        mine = (self.zero_point, self.dtype) == (other.zero_point, other.dtype)
        return mine and np.array_equal(self.scale, other.scale)

    def step(self, value: float) -> float | None:
        """Return the integer nearest to a number, as quantize finds it, within the range.

        None where channels differ in it.
        """
        low, high = self.range
        found = np.clip(np.rint(np.float32(value) / self.scale) + self.zero_point, low, high)
        return float(found.flat[0]) if (found == found.flat[0]).all() else None


@dataclass(frozen=True)
class QuantizedConstant:
    """Constant integers, with a scale for all or for each index along `axis`."""

    array: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    def floats(self) -> np.ndarray:
        """Return what the integers stand for, as float32."""
        zero_point = self.spread(self.zero_point).astype(np.int32)
        shifted = self.array.astype(np.int32) - zero_point
        return np.asarray(shifted.astype(np.float32) * self.spread(self.scale), np.float32)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Shape one number, or one for each index of the axis, to go with the array."""
        shape = [1] * self.array.ndim
        if values.size > 1:
            shape[self.axis] = values.size
        return values.reshape(shape)

    def transposed(self, axes: list[int]) -> QuantizedConstant:
        """Return the same with its axes in another order."""
        axis = axes.index(self.axis % self.array.ndim) if self.scale.size > 1 else 0
        array = np.ascontiguousarray(self.array.transpose(axes))
        return QuantizedConstant(array, self.scale, self.zero_point, axis)

    def as_weights(self, out_axis: int) -> tuple[np.ndarray, np.ndarray] | str:
        """Return int8 weights of zero point 0 and the scale of each output, or why not."""
        outputs = self.array.shape[out_axis]
        if self.scale.size > 1 and self.axis % self.array.ndim != out_axis:
            return f"its weights have scales along axis {self.axis}, not one for each output"
        shape = [1] * self.array.ndim
        if self.zero_point.size > 1:
            shape[out_axis] = outputs
        shifted = self.array.astype(np.int32) - self.zero_point.astype(np.int32).reshape(shape)
        if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
            return "its weights less their zero point do not fit into int8"
        scale = np.broadcast_to(self.scale.reshape(-1), (outputs,)).astype(np.float32)
        return shifted.astype(np.int8), scale


def quantization_of(call: Any, where: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Return scale, zero point and integer dtype of a quantize or dequantize.

    Raises:
        UnsupportedOpError: they are not constant, not positive, or of a dtype other than 8 bits.
    """
    scale, zero_point = (constant_array(arg) for arg in call.args[1:3])
    if scale is None or zero_point is None:
        raise UnsupportedOpError(
            f"{where}: the scale or zero point is computed while the model runs; only constant "
            "ones (static quantization) can be compiled"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise UnsupportedOpError(f"{where}: scale {scale.min()} is not a positive number")
    return scale.astype(np.float32), zero_point, str(zero_point.dtype)


def round_constant(values: np.ndarray, call: Any, where: str) -> np.ndarray:
    """Quantize a constant as the file asks for: weights that are stored in float32."""
    scale, zero_point, dtype = quantization_of(call, where)
    spread = QuantizedConstant(values, scale, zero_point, int(call.attrs.axis)).spread
    ends = np.iinfo(dtype)
    steps = np.rint(values / spread(scale)) + spread(zero_point).astype(np.int64)
    return np.clip(steps, ends.min, ends.max).astype(dtype)


@dataclass
class Steps:
    """Bindings in the making."""

    bindings: list[Binding] = field(default_factory=list)

    def emit(self, name: str, call: Any) -> Any:
        """Bind a call to a new variable of that name."""
        var = relax.DataflowVar(name, relax.BlockBuilder().normalize(call).ty)
        self.bindings.append(Binding(var, call))
        return var

    def bind(self, var: Any, call: Any) -> None:
        """Bind a call to a variable that there is."""
        self.bindings.append(Binding(var, call))

    def centred(self, tensor: QuantizedTensor, name: str) -> Any:
        """Return the integers less their zero point, as float32."""
        x = self.emit(f"{name}_float", relax.op.astype(tensor.var, "float32"))
        if tensor.zero_point:
            zero_point = relax.const(float(tensor.zero_point), "float32")
            x = self.emit(f"{name}_centred", relax.op.subtract(x, zero_point))
        return x

    def dequantize(self, var: Any, tensor: QuantizedTensor) -> None:
        """Bind what the integers stand for to `var`."""
        x = self.centred(tensor, var.name)
        self.bind(var, relax.op.multiply(x, relax.const(tensor.spread_scale, "float32")))

    def round_and_clip(
        self,
        scaled: Any,
        out: QuantizedTensor,
        name: str,
        bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> QuantizedTensor:
        """Turn steps of `out` as float32 into its integers; bounds are integers of it too."""
        x = self.emit(f"{name}_rounded", relax.op.round(scaled))
        if out.zero_point:
            zero_point = relax.const(float(out.zero_point), "float32")
            x = self.emit(f"{name}_shifted", relax.op.add(x, zero_point))
        low, high = (float(end) for end in out.range)
        low, high = max(low, bounds[0]), min(high, bounds[1])
        x = self.emit(f"{name}_low", relax.op.maximum(x, relax.const(low, "float32")))
        x = self.emit(f"{name}_high", relax.op.minimum(x, relax.const(high, "float32")))
        var = self.emit(name, relax.op.astype(x, out.dtype))
        return QuantizedTensor(var, out.scale, out.zero_point, out.dtype)
