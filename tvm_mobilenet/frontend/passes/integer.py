"""Turn quantize and dequantize around float operators into integer arithmetic.

What comes out is plain Relax: any schedule that is right for Relax is right for it, and the integer
kernels of `tvm_mobilenet/schedule/` recognise the forms below. This is the contract between them,
after the layout pass, in NHWC.

Convolution
    x      (N, H, W, C) int8 or uint8, of zero point zx; w (O, kH, kW, I/g) int8, of zero point 0
    padded nn.pad(x, pad_value=zx), only where the model pads; the convolution itself has none
    acc    nn.conv2d(padded, w, out_dtype="int32"); strides, dilation and groups as in float
    biased add(acc, bias), always there; bias (1, 1, 1, O) int32: the model's bias in steps of
           sx * sw[o], less zx * sum(w[o])
    and then the requantization.
Dense
    matmul(x, w, out_dtype="int32"), x (N, K), w (K, O), bias (O,), the rest the same.

Requantization, of `biased` to y, of scale sy and zero point zy
    astype float32, multiply(factor), round, add(zy), maximum(low), minimum(high), astype of y
    factor is float32, (1, 1, 1, O) or (O,): sx * sw[o] / sy, each operation rounded to float32, in
    this order. low and high are scalars: the ends of y's dtype, or the bounds of the activation
    (ReLU, ReLU6) in steps of y. `round` rounds halves to even. add(zy) is absent where zy is 0.
    This is ONNX Runtime's arithmetic (MlasRequantizeOutput): its integers are our integers.

    An activation that is no bound, or a residual that is added before anything is rounded, stands
    between: multiply(sx * sw[o]), that in float32, multiply(1 / sy), `round` and so on.
    Where nothing is quantized again the result stays float32: astype, multiply(sx * sw[o]).

Element-wise, each a single kernel with integers in and out; subtract(z) is absent where z is 0
    add       (astype(a) - za) * (sa / sy) + (astype(b) - zb) * (sb / sy), then from `round` on
    multiply  (astype(a) - za) * (astype(b) - zb) * (sa * sb / sy), then from `round` on
    others    (astype(x) - zx) * sx, the operators in float32, multiply(1 / sy), from `round` on
Global average
    sum(astype int32, axis=(1, 2)), add(-H * W * zx), then requantized by sx / (sy * (H * W)).
Reshapes, transposes, padding and maximum pooling move integers, and so does a concatenation, which
requantizes first those inputs whose scale is another.

Model inputs that are float32 are quantized with divide(sy) and not multiply(1 / sy): the pixels of
pictures take few values, and one that lies half-way between two steps does so everywhere.

`activations` brings all tensors between layers to one signedness, whatever the file says: uint8 q
of zero point z and int8 q - 128 of z - 128 are the same numbers.

Reference: Jacob et al. 2018 (arXiv:1712.05877), section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.frontend.passes.islands import Islands, with_islands
from tvm_mobilenet.frontend.passes.quantized import (
    Activations,
    QuantizedConstant,
    QuantizedTensor,
    Steps,
    quantization_of,
    round_constant,
)

__all__ = ["integerize"]

_INT32_MAX = 2**31 - 1
_BYTE = ("int8", "uint8")


def integerize(mod: IRModule, activations: Activations | None = None) -> IRModule:
    """Compute in integers what lies between dequantize and quantize; the module says how.

    Rewrite:
        quantize(minimum(maximum(add(conv2d(dequantize(x), dequantize(w)), b), low), high))
            ->  the integer convolution of the contract, and so for the other operators there
    Shapes:
        before the layout pass: x (N, C, H, W), w (O, I/g, kH, kW).

    What cannot be had in integers is computed in float32 from dequantized tensors, and listed with
    its reason for `float_islands`. A module without quantize and dequantize is returned as it is.

    Args:
        mod: the module, as imported.
        activations: dtype of all tensors between layers; None for what the file says.

    Raises:
        UnsupportedOpError: a quantization of another kind: computed scales, other than 8 bits,
            activations with a scale for each channel.
    """
    flow = Dataflow(mod)
    if not any(is_call(b.value, "quantize", "dequantize") for b in flow.bindings):
        return mod
    walk = _Walk(flow, activations)
    for binding in flow.bindings:
        if binding.var not in walk.done:
            walk.visit(binding)
    return with_islands(flow.rebuild(walk.steps.bindings, walk.replaced), walk.islands)


@dataclass
class _Tail:
    """What follows an operator, as far as it can be had with it."""

    last: Any
    members: list[Any] = field(default_factory=list)
    bias: Any = None
    low: float = -np.inf
    high: float = np.inf
    out: QuantizedTensor | None = None
    """What the end is quantized to; its variable is the quantize's."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The activation's bounds in steps of the result."""
        assert self.out is not None
        low = -np.inf if self.low == -np.inf else self.out.step(self.low)
        high = np.inf if self.high == np.inf else self.out.step(self.high)
        return low, high


class _Walk:
    """One walk over a module, in order."""

    def __init__(self, flow: Dataflow, activations: Activations | None) -> None:
        self.steps = Steps()
        self.replaced: dict[Any, Any] = {}
        self.done: set[Any] = set()
        self.islands = Islands()
        self._activations = activations
        self._params = flow.params
        self._outputs = flow.outputs()
        self._users = flow.users()
        self._values = flow.definitions()
        self._integers: dict[Any, QuantizedTensor] = {}
        """By the variable of integers, as it was."""
        self._tensors: dict[Any, QuantizedTensor] = {}
        """By the float variable that stands for them."""
        self._constants: dict[Any, QuantizedConstant] = {}
        self._rounded: dict[Any, np.ndarray] = {}
        """Float constants that the file leaves to be quantized."""

    def visit(self, binding: Binding) -> None:
        """Rewrite one binding, with those behind it that it takes over."""
        call, reason = binding.value, None
        if is_call(call, "dequantize"):
            self._dequantize(binding)
            return
        if is_call(call, "quantize"):
            self._quantize(binding)
            return
        if is_call(call, "nn.conv2d"):
            reason = self._product(binding, out_axis=0)
        elif is_call(call, "matmul"):
            reason = self._product(binding, out_axis=1)
        elif is_call(call, "add", "multiply"):
            reason = self._element_wise(binding)
        elif is_call(call, "mean"):
            reason = self._mean(binding)
        elif is_call(call, "concat"):
            reason = self._concat(binding)
        elif is_call(call, *_MOVES):
            reason = self._move(binding)
        else:
            reason = "no integer form"
        if reason is not None:
            self.steps.bindings.append(binding)
            self.islands.note(binding, reason)

    # -- to integers and back --------------------------------------------------------------------

    def _dequantize(self, binding: Binding) -> None:
        var, call = binding.var, binding.value
        scale, zero_point, dtype = quantization_of(call, f"DequantizeLinear {var.name!r}")
        source = call.args[0]
        array = self._rounded.get(source)
        if array is None:
            array = constant_array(source)
        if array is not None:
            constant = QuantizedConstant(array, scale, zero_point, int(call.attrs.axis))
            self._constants[var] = constant
            self.steps.bind(var, relax.const(constant.floats()))
            return
        if scale.size != 1 or dtype not in _BYTE:
            raise _unsupported("DequantizeLinear", var, scale, dtype)
        tensor = self._integers.get(source)
        found = (np.float32(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), dtype)
        if tensor is None or not self._is_of(source, found):
            tensor = self._signed_as_wanted(QuantizedTensor(source, *found))
        self._stands_for(var, tensor)

    def _is_of(self, source: Any, found: tuple[np.float32, int, str]) -> bool:
        """Tell whether integers are read back with the scale that they were written with."""
        made = self._values[source]
        if not is_call(made, "quantize"):
            return False
        scale, zero_point, dtype = quantization_of(made, source.name)
        return found == (scale.reshape(-1)[0], int(zero_point.reshape(-1)[0]), dtype)

    def _stands_for(self, var: Any, tensor: QuantizedTensor) -> None:
        """Remember a float variable's integers; its own arithmetic goes if nothing reads it."""
        self._tensors[var] = tensor
        self.steps.dequantize(var, tensor)

    def _signed_as_wanted(self, tensor: QuantizedTensor) -> QuantizedTensor:
        if self._activations in (None, tensor.dtype):
            return tensor
        shift = 128 if tensor.dtype == "int8" else -128
        name = tensor.var.name
        wide = self.steps.emit(f"{name}_wide", relax.op.astype(tensor.var, "int16"))
        moved = self.steps.emit(f"{name}_moved", relax.op.add(wide, relax.const(shift, "int16")))
        narrow = relax.op.astype(moved, self._activations)
        var = self.steps.emit(f"{name}_{self._activations}", narrow)
        return QuantizedTensor(var, tensor.scale, tensor.zero_point + shift, str(self._activations))

    def _target(self, var: Any, call: Any) -> QuantizedTensor:
        """Return what a quantize makes, of the signedness that is wanted."""
        scale, zero_point, dtype = quantization_of(call, f"QuantizeLinear {var.name!r}")
        if scale.size != 1 or dtype not in _BYTE:
            raise _unsupported("QuantizeLinear", var, scale, dtype)
        out = QuantizedTensor(
            var, np.float32(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), dtype
        )
        is_output = any(var.same_as(output) for output in self._outputs)
        if self._activations in (None, dtype) or is_output:
            return out
        shift = 128 if dtype == "int8" else -128
        return replace(out, zero_point=out.zero_point + shift, dtype=str(self._activations))

    def _quantize(self, binding: Binding) -> None:
        """Quantize what is float32, or leave integers as they are where nothing changes."""
        weights = self._constant(binding.value.args[0])
        if weights is not None:
            where = f"QuantizeLinear {binding.var.name!r}"
            integers = round_constant(weights, binding.value, where)
            self._rounded[binding.var] = integers
            self.steps.bind(binding.var, relax.const(integers))
            return
        x, out = binding.value.args[0], self._target(binding.var, binding.value)
        known = self._tensors.get(x)
        if known is not None and known.same_as(out):
            self._becomes(binding.var, known)
            return
        name = binding.var.name
        if any(x.same_as(param) for param in self._params):
            scaled = self.steps.emit(
                f"{name}_scaled", relax.op.divide(x, relax.const(out.scale, "float32"))
            )
        else:
            factor = relax.const(np.float32(1) / out.scale, "float32")
            scaled = self.steps.emit(f"{name}_scaled", relax.op.multiply(x, factor))
        self.islands.quantized(x)
        self._becomes(binding.var, self.steps.round_and_clip(scaled, out, name))

    def _constant(self, expr: Any) -> np.ndarray | None:
        known = self._constants.get(expr)
        return known.floats() if known is not None else constant_array(expr)

    def _becomes(self, var: Any, tensor: QuantizedTensor) -> None:
        """Put integers in the place of what a quantize made."""
        self.replaced[var] = tensor.var
        self._integers[var] = tensor
        self.done.add(var)

    # -- operators -------------------------------------------------------------------------------

    def _product(self, binding: Binding, out_axis: int) -> str | None:
        """Rewrite a convolution or a dense layer; returns why not, or None."""
        call, name = binding.value, binding.var.name
        tensor, constant = self._tensors.get(call.args[0]), self._constants.get(call.args[1])
        if constant is None:
            return "its weights are not quantized"
        if tensor is None:
            return "its input is not quantized"
        if constant.array.ndim != (4 if out_axis == 0 else 2):
            return f"its weights have {constant.array.ndim} dimensions"
        weights = constant.as_weights(out_axis)
        if isinstance(weights, str):
            return weights
        weight, weight_scale = weights
        tail = self._tail(binding.var, biased=True, channels=weight_scale.size)
        unit = np.float32(tensor.scale) * weight_scale
        axes = tuple(axis for axis in range(weight.ndim) if axis != out_axis)
        own = self._bias_steps(tail.bias, unit)
        bias = own - tensor.zero_point * weight.sum(axis=axes, dtype=np.int64)
        largest = np.abs(bias) + 255 * np.abs(weight.astype(np.int64)).sum(axis=axes)
        if largest.max(initial=0) > _INT32_MAX:
            return "its sums do not fit into 32 bits"

        shape = (1, -1, 1, 1) if out_axis == 0 else (-1,)
        if out_axis == 0:
            acc = self._convolution(call, name, tensor, weight)
        else:
            product = relax.op.matmul(tensor.var, relax.const(weight), out_dtype="int32")
            acc = self.steps.emit(f"{name}_acc", product)
        addend = relax.const(bias.astype(np.int32).reshape(shape))
        biased = self.steps.emit(f"{name}_biased", relax.op.add(acc, addend))
        self._requantize(biased, tail, unit, shape)
        return None

    def _convolution(
        self, call: Any, name: str, tensor: QuantizedTensor, weight: np.ndarray
    ) -> Any:
        top, left, bottom, right = (int(p) for p in call.attrs.padding)
        x = tensor.var
        if any((top, left, bottom, right)):
            widths = [0, 0, 0, 0, top, bottom, left, right]
            padded = relax.op.nn.pad(x, widths, pad_value=tensor.zero_point)
            x = self.steps.emit(f"{name}_padded", padded)
        convolution = relax.op.nn.conv2d(
            x,
            relax.const(weight),
            strides=[int(s) for s in call.attrs.strides],
            dilation=[int(d) for d in call.attrs.dilation],
            groups=int(call.attrs.groups),
            data_layout="NCHW",
            kernel_layout="OIHW",
            out_dtype="int32",
        )
        return self.steps.emit(f"{name}_acc", convolution)

    def _bias_steps(self, bias: Any, unit: np.ndarray) -> np.ndarray:
        """Return a bias, None for 0, in steps of `unit` (O,), as int64."""
        if bias is None:
            return np.zeros(unit.size, np.int64)
        if isinstance(bias, QuantizedConstant):
            is_whole = not bias.zero_point.any() and np.allclose(bias.scale, unit, rtol=1e-5)
            if is_whole and bias.array.size == unit.size:
                return bias.array.reshape(-1).astype(np.int64)
            bias = bias.floats()
        values = np.broadcast_to(bias.reshape(-1), unit.shape).astype(np.float64)
        return np.rint(values / unit).astype(np.int64)

    def _requantize(
        self, integers: Any, tail: _Tail, unit: np.ndarray, shape: tuple[int, ...]
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
        self._becomes(tail.last, self.steps.round_and_clip(scaled, tail.out, name, tail.bounds))

    def _element_wise(self, binding: Binding) -> str | None:
        """Rewrite a sum or a product of two integer tensors."""
        call = binding.value
        a, b = (self._tensors.get(arg) for arg in call.args)
        tail = self._tail(binding.var)
        if a is None or b is None:
            return "no integer form"
        if tail.out is None:
            return "its result is not quantized"
        name, scale = tail.last.name, tail.out.scale
        left, right = self.steps.centred(a, f"{name}_a"), self.steps.centred(b, f"{name}_b")
        if is_call(call, "add"):
            factors = [relax.const(t.scale / scale, "float32") for t in (a, b)]
            left = self.steps.emit(f"{name}_a_scaled", relax.op.multiply(left, factors[0]))
            right = self.steps.emit(f"{name}_b_scaled", relax.op.multiply(right, factors[1]))
            scaled = self.steps.emit(f"{name}_sum", relax.op.add(left, right))
        else:
            product = self.steps.emit(f"{name}_product", relax.op.multiply(left, right))
            factor = relax.const(a.scale * b.scale / scale, "float32")
            scaled = self.steps.emit(f"{name}_scaled", relax.op.multiply(product, factor))
        self.done.update(tail.members)
        self._becomes(tail.last, self.steps.round_and_clip(scaled, tail.out, name, tail.bounds))
        return None

    def _mean(self, binding: Binding) -> str | None:
        """Rewrite a global average: the sum is exact."""
        call, name = binding.value, binding.var.name
        tensor, shape = self._tensors.get(call.args[0]), static_shape(call.args[0])
        axes = sorted(int(axis) % len(shape) for axis in call.attrs.axis or range(len(shape)))
        if tensor is None:
            return "its input is not quantized"
        if len(shape) != 4 or axes != [2, 3]:
            return f"a mean over axes {axes}"
        pixels = shape[2] * shape[3]
        wide = self.steps.emit(f"{name}_wide", relax.op.astype(tensor.var, "int32"))
        total = relax.op.sum(wide, axis=axes, keepdims=bool(call.attrs.keepdims))
        x = self.steps.emit(f"{name}_sum", total)
        if tensor.zero_point:
            shift = relax.const(-pixels * tensor.zero_point, "int32")
            x = self.steps.emit(f"{name}_biased", relax.op.add(x, shift))
        tail = self._tail(binding.var)
        if tail.out is None:
            tail = _Tail(binding.var)
            unit = tensor.scale / np.float32(pixels)
        else:
            # In the order of ONNX Runtime's rounding: sx / (sy * pixels).
            unit = tensor.scale / (tail.out.scale * np.float32(pixels)) * tail.out.scale
        self._requantize(x, tail, np.asarray(unit), ())
        return None

    def _concat(self, binding: Binding) -> str | None:
        """Rewrite a concatenation: every part in the scale of the whole."""
        call = binding.value
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
        parts = [self._tensors.get(part) for part in fields]
        known = [part for part in parts if part is not None]
        if not known or len(known) != len(parts):
            return "a part is not quantized"
        tail = self._tail(binding.var)
        is_plain = (tail.low, tail.high) == (-np.inf, np.inf)
        if tail.out is None or not is_plain:
            if not all(part.same_as(known[0]) for part in known):
                return "its parts have several scales, and its result is not quantized"
            tail = _Tail(binding.var)
        name, out = tail.last.name, tail.out or known[0]
        same = []
        for index, (part, source) in enumerate(zip(known, fields, strict=True)):
            if not part.same_as(out):
                label = f"{name}_part{index}"
                factor = relax.const(part.scale / out.scale, "float32")
                x = self.steps.centred(part, label)
                scaled = self.steps.emit(f"{label}_scaled", relax.op.multiply(x, factor))
                part = self.steps.round_and_clip(scaled, out, label)
            del source
            same.append(part.var)
        joined = relax.op.concat(same, axis=int(call.attrs.axis))
        self._moved(tail, self.steps.emit(f"{name}_joined", joined), out, binding.var)
        return None

    def _move(self, binding: Binding) -> str | None:
        """Rewrite what only moves numbers or takes the greatest of them."""
        call = binding.value
        x = call.args[0]
        constant = self._constants.get(x)
        if constant is not None and is_call(call, "permute_dims"):
            rank = constant.array.ndim
            axes = [int(a) % rank for a in call.attrs.axes or range(rank - 1, -1, -1)]
            self._constants[binding.var] = turned = constant.transposed(axes)
            self.steps.bind(binding.var, relax.const(turned.floats()))
            return None
        tensor = self._tensors.get(x)
        if tensor is None:
            return "" if is_call(call, *_VIEWS) else "its input is not quantized"
        name = binding.var.name
        if is_call(call, "nn.pad"):
            if str(call.attrs.pad_mode) != "constant":
                return f"padding by {call.attrs.pad_mode}"
            value = tensor.step(float(call.attrs.pad_value))
            widths = [int(width) for width in call.attrs.pad_width]
            new = relax.op.nn.pad(tensor.var, widths, pad_value=value)
        else:
            new = relax.Call(call.op, [tensor.var, *call.args[1:]], call.attrs, call.ty_args)
        var = self.steps.emit(f"{name}_{tensor.dtype}", new)
        self._stands_for(binding.var, replace(tensor, var=var))
        return None

    def _moved(self, tail: _Tail, var: Any, out: QuantizedTensor, float_var: Any) -> None:
        tensor = replace(out, var=var)
        if tail.out is None:
            self._stands_for(float_var, tensor)
            return
        self.done.update(tail.members)
        self._becomes(tail.last, tensor)

    # -- what follows an operator ----------------------------------------------------------------

    def _tail(self, var: Any, *, biased: bool = False, channels: int = 0) -> _Tail:
        """Follow single readers: a bias, bounds, a quantize. Without the last, the bias alone."""
        tail = _Tail(var)
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
        if reader is None or not is_call(reader.value, "quantize"):
            return without
        tail.last, tail.out = reader.var, self._target(reader.var, reader.value)
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


_VIEWS = ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten")
_MOVES = (*_VIEWS, "nn.pad", "nn.max_pool2d", "strided_slice")
"""Operators that compute the same on integers as on what they stand for."""


def _unsupported(operator: str, var: Any, scale: np.ndarray, dtype: str) -> UnsupportedOpError:
    if dtype not in _BYTE:
        return UnsupportedOpError(
            f"operator {operator} (tensor {var.name!r}) cannot be handled: activations of {dtype}; "
            "quantize them to int8 or uint8"
        )
    return UnsupportedOpError(
        f"operator {operator} (tensor {var.name!r}) cannot be handled: activations with "
        f"{scale.size} scales; quantize activations with one scale for each tensor"
    )
