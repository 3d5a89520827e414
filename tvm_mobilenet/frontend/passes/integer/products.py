"""Convolutions and dense layers of integers: int32 sums, the zero point in the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import Binding
from tvm_mobilenet.frontend.passes.integer.walk import Walk
from tvm_mobilenet.frontend.passes.quantized import QuantizedConstant, QuantizedTensor

__all__ = ["rewrite_product"]

_INT32_MAX = 2**31 - 1


def rewrite_product(walk: Walk, binding: Binding, out_axis: int) -> str | None:
    """Rewrite a convolution or a dense layer; returns why not, or None."""
    call, name = binding.value, binding.var.name
    tensor, constant = walk.tensors.get(call.args[0]), walk.constants.get(call.args[1])
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
    scale = tensor.scale
    if tensor.is_by_channel:
        # One channel for each sum: then its scale is as good as the weights' own.
        if out_axis != 0 or int(call.attrs.groups) != scale.size or weight.shape[1] != 1:
            return "its input has a scale for each channel, and it is not depthwise"
        scale = np.repeat(scale, weight.shape[0] // scale.size)
    tail = walk.tail(binding.var, biased=True, channels=weight_scale.size)
    unit = scale * weight_scale
    axes = tuple(axis for axis in range(weight.ndim) if axis != out_axis)
    own = _bias_steps(tail.bias, unit)
    bias = own - tensor.zero_point * weight.sum(axis=axes, dtype=np.int64)
    largest = np.abs(bias) + 255 * np.abs(weight.astype(np.int64)).sum(axis=axes)
    if largest.max(initial=0) > _INT32_MAX:
        return "its sums do not fit into 32 bits"

    shape = (1, -1, 1, 1) if out_axis == 0 else (-1,)
    if out_axis == 0:
        acc = _convolution(walk, call, name, tensor, weight)
    else:
        product = relax.op.matmul(tensor.var, relax.const(weight), out_dtype="int32")
        acc = walk.steps.emit(f"{name}_acc", product)
    addend = relax.const(bias.astype(np.int32).reshape(shape))
    biased = walk.steps.emit(f"{name}_biased", relax.op.add(acc, addend))
    walk.requantize(biased, tail, unit, shape)
    return None


def _convolution(
    walk: Walk, call: Any, name: str, tensor: QuantizedTensor, weight: np.ndarray
) -> Any:
    top, left, bottom, right = (int(p) for p in call.attrs.padding)
    x = tensor.var
    if any((top, left, bottom, right)):
        widths = [0, 0, 0, 0, top, bottom, left, right]
        padded = relax.op.nn.pad(x, widths, pad_value=tensor.zero_point)
        x = walk.steps.emit(f"{name}_padded", padded)
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
    return walk.steps.emit(f"{name}_acc", convolution)


def _bias_steps(bias: Any, unit: np.ndarray) -> np.ndarray:
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
