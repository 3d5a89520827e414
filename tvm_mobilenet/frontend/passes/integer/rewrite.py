"""The rewrite itself: which operator is brought into integers by which function."""

from __future__ import annotations

from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow, is_call
from tvm_mobilenet.frontend.passes.integer.operators import (
    MOVES,
    rewrite_concat,
    rewrite_element_wise,
    rewrite_mean,
    rewrite_move,
)
from tvm_mobilenet.frontend.passes.integer.products import rewrite_product
from tvm_mobilenet.frontend.passes.integer.walk import Walk
from tvm_mobilenet.frontend.passes.islands import with_islands

__all__ = ["integerize"]


def integerize(mod: IRModule) -> IRModule:
    """Compute in integers what lies between dequantize and quantize; the module says how.

    Rewrite:
        quantize(minimum(maximum(add(conv2d(dequantize(x), dequantize(w)), b), low), high))
            ->  the integer convolution of the contract, and so for the other operators there
    Shapes:
        before the layout pass: x (N, C, H, W), w (O, I/g, kH, kW).

    What cannot be had in integers is computed in float32 from dequantized tensors, and listed with
    its reason for `float_islands`. A module without quantize and dequantize is returned as it is.

    Raises:
        UnsupportedOpError: a quantization of another kind: computed scales, other than 8 bits,
            activations with a scale for each channel.
    """
    flow = Dataflow(mod)
    if not any(is_call(b.value, "quantize", "dequantize") for b in flow.bindings):
        return mod
    walk = Walk(flow)
    for binding in flow.bindings:
        if binding.var not in walk.done:
            _visit(walk, binding)
    return with_islands(flow.rebuild(walk.steps.bindings, walk.replaced), walk.islands)


def _visit(walk: Walk, binding: Binding) -> None:
    """Rewrite one binding, with those behind it that it takes over."""
    call, reason = binding.value, None
    if is_call(call, "dequantize"):
        walk.dequantize(binding)
        return
    if is_call(call, "quantize"):
        walk.quantize(binding)
        return
    if is_call(call, "nn.conv2d"):
        reason = rewrite_product(walk, binding, out_axis=0)
    elif is_call(call, "matmul"):
        reason = rewrite_product(walk, binding, out_axis=1)
    elif is_call(call, "add", "multiply"):
        reason = rewrite_element_wise(walk, binding)
    elif is_call(call, "mean"):
        reason = rewrite_mean(walk, binding)
    elif is_call(call, "concat"):
        reason = rewrite_concat(walk, binding)
    elif is_call(call, *MOVES):
        reason = rewrite_move(walk, binding)
    else:
        reason = "no integer form"
    if reason is not None:
        walk.steps.bindings.append(binding)
        walk.islands.note(binding, reason)
