"""What is between products: sums, products of two tensors, means, concatenations, moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import Binding, is_call, static_shape
from tvm_mobilenet.frontend.passes.integer.tail import Tail
from tvm_mobilenet.frontend.passes.integer.walk import Walk

__all__ = [
    "MOVES",
    "rewrite_concat",
    "rewrite_element_wise",
    "rewrite_mean",
    "rewrite_move",
]

_BY_CHANNEL = "its input has a scale for each channel"
_VIEWS = ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten")
MOVES = (*_VIEWS, "nn.pad", "nn.max_pool2d", "strided_slice")
"""Operators that compute the same on integers as on what they stand for."""


def rewrite_element_wise(walk: Walk, binding: Binding) -> str | None:
    """Rewrite a sum or a product of two integer tensors."""
    call = binding.value
    a, b = (walk.tensors.get(arg) for arg in call.args)
    tail = walk.tail(binding.var)
    if a is None or b is None:
        return "no integer form"
    if a.is_by_channel or b.is_by_channel:
        return _BY_CHANNEL
    if tail.out is None:
        return "its result is not quantized"
    name, scale = tail.last.name, tail.out.scale
    left, right = walk.steps.centred(a, f"{name}_a"), walk.steps.centred(b, f"{name}_b")
    if is_call(call, "add"):
        factors = [relax.const(t.scale / scale, "float32") for t in (a, b)]
        left = walk.steps.emit(f"{name}_a_scaled", relax.op.multiply(left, factors[0]))
        right = walk.steps.emit(f"{name}_b_scaled", relax.op.multiply(right, factors[1]))
        scaled = walk.steps.emit(f"{name}_sum", relax.op.add(left, right))
    else:
        product = walk.steps.emit(f"{name}_product", relax.op.multiply(left, right))
        factor = relax.const(a.scale * b.scale / scale, "float32")
        scaled = walk.steps.emit(f"{name}_scaled", relax.op.multiply(product, factor))
    walk.done.update(tail.members)
    walk.becomes(tail.last, walk.steps.round_and_clip(scaled, tail.out, name, tail.bounds))
    return None


def rewrite_mean(walk: Walk, binding: Binding) -> str | None:
    """Rewrite a global average: the sum is exact."""
    call, name = binding.value, binding.var.name
    tensor, shape = walk.tensors.get(call.args[0]), static_shape(call.args[0])
    axes = sorted(int(axis) % len(shape) for axis in call.attrs.axis or range(len(shape)))
    if tensor is None:
        return "its input is not quantized"
    if tensor.is_by_channel:
        return _BY_CHANNEL
    if len(shape) != 4 or axes != [2, 3]:
        return f"a mean over axes {axes}"
    pixels = shape[2] * shape[3]
    wide = walk.steps.emit(f"{name}_wide", relax.op.astype(tensor.var, "int32"))
    total = relax.op.sum(wide, axis=axes, keepdims=bool(call.attrs.keepdims))
    x = walk.steps.emit(f"{name}_sum", total)
    if tensor.zero_point:
        shift = relax.const(-pixels * tensor.zero_point, "int32")
        x = walk.steps.emit(f"{name}_biased", relax.op.add(x, shift))
    tail = walk.tail(binding.var)
    if tail.out is None:
        tail = Tail(binding.var)
        unit = tensor.scale / np.float32(pixels)
    else:
        # In the order of ONNX Runtime's rounding: sx / (sy * pixels).
        unit = tensor.scale / (tail.out.scale * np.float32(pixels)) * tail.out.scale
    walk.requantize(x, tail, np.asarray(unit), ())
    return None


def rewrite_concat(walk: Walk, binding: Binding) -> str | None:
    """Rewrite a concatenation: every part in the scale of the whole."""
    call = binding.value
    fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
    parts = [walk.tensors.get(part) for part in fields]
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts):
        return "a part is not quantized"
    if any(part.is_by_channel for part in known):
        return _BY_CHANNEL
    tail = walk.tail(binding.var)
    is_plain = (tail.low, tail.high) == (-np.inf, np.inf)
    if tail.out is None or not is_plain:
        if not all(part.same_as(known[0]) for part in known):
            return "its parts have several scales, and its result is not quantized"
        tail = Tail(binding.var)
    name, out = tail.last.name, tail.out or known[0]
    same = []
    for index, (part, source) in enumerate(zip(known, fields, strict=True)):
        if not part.same_as(out):
            label = f"{name}_part{index}"
            factor = relax.const(part.scale / out.scale, "float32")
            x = walk.steps.centred(part, label)
            scaled = walk.steps.emit(f"{label}_scaled", relax.op.multiply(x, factor))
            part = walk.steps.round_and_clip(scaled, out, label)
        del source
        same.append(part.var)
    joined = relax.op.concat(same, axis=int(call.attrs.axis))
    walk.moved(tail, walk.steps.emit(f"{name}_joined", joined), out, binding.var)
    return None


def rewrite_move(walk: Walk, binding: Binding) -> str | None:
    """Rewrite what only moves numbers or takes the greatest of them."""
    call = binding.value
    x = call.args[0]
    constant = walk.constants.get(x)
    if constant is not None and is_call(call, "permute_dims"):
        rank = constant.array.ndim
        axes = [int(a) % rank for a in call.attrs.axes or range(rank - 1, -1, -1)]
        walk.constants[binding.var] = turned = constant.transposed(axes)
        walk.steps.bind(binding.var, relax.const(turned.floats()))
        return None
    tensor = walk.tensors.get(x)
    if tensor is None:
        return "" if is_call(call, *_VIEWS) else "its input is not quantized"
    if tensor.is_by_channel:
        return _BY_CHANNEL
    name = binding.var.name
    if is_call(call, "nn.pad"):
        if str(call.attrs.pad_mode) != "constant":
            return f"padding by {call.attrs.pad_mode}"
        value = tensor.step(float(call.attrs.pad_value))
        assert value is not None  # one scale, one step
        widths = [int(width) for width in call.attrs.pad_width]
        new = relax.op.nn.pad(tensor.var, widths, pad_value=value)
    else:
        new = relax.Call(call.op, [tensor.var, *call.args[1:]], call.attrs, call.ty_args)
    var = walk.steps.emit(f"{name}_{tensor.dtype}", new)
    walk.stands_for(binding.var, replace(tensor, var=var))
    return None
