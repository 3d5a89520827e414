"""Fold per-channel factors and shifts into the convolution that feeds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)

__all__ = ["fold_batch_norm"]


def fold_batch_norm(mod: IRModule) -> IRModule:
    """Fold an inference batch norm into the convolution before it, until nothing changes.

    Rewrite:
        1. multiply(conv2d(x, w), s)  ->  conv2d(x, w * s)
        2. multiply(add(y, b), s)     ->  add(multiply(y, s), b * s)    with y a convolution
        3. add(add(y, b), c)          ->  add(y, b + c)                 with y a convolution
    Shapes:
        x (N, C, H, W), w (O, I/g, kH, kW), all f32; s, b, c (1, O, 1, 1), (O, 1, 1) or scalar f32.

    Fires only where the inner value has no other reader.
    Reference: Jacob et al. 2018 (arXiv:1712.05877), section 3.2.
    """
    while True:
        folded = _fold_once(mod)
        if folded is None:
            return mod
        mod = folded


def _fold_once(mod: IRModule) -> IRModule | None:
    flow = Dataflow(mod)
    users = flow.users()
    definitions = flow.definitions()
    for position, binding in enumerate(flow.bindings):
        if not is_call(binding.value, "multiply", "add"):
            continue
        inner, factor = _operand_and_channels(binding.value)
        if inner is None or factor is None or len(users[inner]) != 1:
            continue
        value = definitions.get(inner)
        if is_call(binding.value, "multiply") and _has_fixed_weights(value):
            replacement = [Binding(binding.var, _scaled_conv(value, factor))]
        elif is_call(value, "add"):
            conv, bias = _operand_and_channels(value)
            if bias is None or not _has_fixed_weights(definitions.get(conv)):
                continue
            if is_call(binding.value, "multiply"):
                if len(users[conv]) != 1:
                    continue
                scaled = relax.DataflowVar(f"{inner.name}_scaled", conv.ty)
                replacement = [
                    Binding(scaled, relax.op.multiply(conv, _constant(factor))),
                    Binding(binding.var, relax.op.add(scaled, _constant(bias * factor))),
                ]
            else:
                shift = _constant(bias + factor)
                replacement = [Binding(binding.var, relax.op.add(conv, shift))]
        else:
            continue
        bindings = list(flow.bindings)
        bindings[position : position + 1] = replacement
        return flow.rebuild(bindings)
    return None


def _operand_and_channels(call: Any) -> tuple[Any, np.ndarray | None]:
    """Return the tensor and the per-channel constant (1, O, 1, 1) of `call`, in either order."""
    for tensor, constant in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        array = constant_array(constant)
        if array is None or not isinstance(tensor, relax.Var):
            continue
        shape = static_shape(tensor)
        if len(shape) != 4:
            continue
        if array.size == 1:
            return tensor, np.full((1, shape[1], 1, 1), array.reshape(()), dtype=array.dtype)
        if array.size == shape[1] and array.shape[-2:] == (1, 1) and array.ndim >= 3:
            return tensor, array.reshape(1, -1, 1, 1)
    return None, None


def _has_fixed_weights(value: Any) -> bool:
    return is_call(value, "nn.conv2d") and constant_array(value.args[1]) is not None


def _scaled_conv(conv: Any, factor: np.ndarray) -> Any:
    weight = constant_array(conv.args[1])
    assert weight is not None
    scaled = weight.astype("float64") * factor.reshape(-1, 1, 1, 1)
    return relax.Call(
        conv.op, [conv.args[0], _constant(scaled.astype(weight.dtype))], conv.attrs, conv.ty_args
    )


def _constant(array: np.ndarray) -> Any:
    return relax.const(np.ascontiguousarray(array.astype("float32")))
