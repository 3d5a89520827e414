"""Leave out what a convolution only ever multiplies padding by."""

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

__all__ = ["trim_taps"]


def trim_taps(mod: IRModule) -> IRModule:
    """Cut rows and columns of taps off a convolution that no output has on the image.

    An atrous convolution whose rate is that of the feature map or more has but its middle tap left.

    Rewrite:
        conv2d(x, w, padding=p, dilation=d)  ->  conv2d(x, w[:, :, a:b, c:e], padding=q, dilation=d)
    Shapes:
        x (N, C, H, W) f32, w (O, C/g, kH, kW) f32.
    """
    flow = Dataflow(mod)
    bindings = []
    for binding in flow.bindings:
        value = binding.value
        if is_call(value, "nn.conv2d") and str(value.attrs.data_layout) == "NCHW":
            value = _trimmed(value, static_shape(binding.var))
        bindings.append(Binding(binding.var, value))
    return flow.rebuild(bindings)


def _trimmed(conv: Any, out_shape: tuple[int, ...]) -> Any:
    weight = constant_array(conv.args[1])
    if weight is None:
        return conv
    attrs = conv.attrs
    shape = static_shape(conv.args[0])
    pads = [int(p) for p in attrs.padding]
    strides, dilation = ([int(n) for n in values] for values in (attrs.strides, attrs.dilation))
    kept = []
    for axis in (0, 1):
        extent, taps = shape[2 + axis], weight.shape[2 + axis]
        outputs = np.arange(out_shape[2 + axis]) * strides[axis] - pads[axis]
        places = outputs[:, None] + np.arange(taps) * dilation[axis]
        live = np.flatnonzero(((places >= 0) & (places < extent)).any(axis=0))
        if not live.size:
            return conv  # nothing but padding: an output of zeros, which is nobody's model
        first, last = int(live[0]), int(live[-1])
        kept.append((first, last + 1))
        pads[axis] -= first * dilation[axis]
        pads[2 + axis] -= (taps - 1 - last) * dilation[axis]
    rows, columns = kept
    if rows == (0, weight.shape[2]) and columns == (0, weight.shape[3]):
        return conv
    if min(pads) < 0:
        return conv
    # With one tap its rate means nothing; said as 1 the convolution is seen to be pointwise.
    dilation = [1 if b - a == 1 else d for (a, b), d in zip(kept, dilation, strict=True)]
    return relax.op.nn.conv2d(
        conv.args[0],
        relax.const(np.ascontiguousarray(weight[:, :, slice(*rows), slice(*columns)])),
        strides=strides,
        padding=pads,
        dilation=dilation,
        groups=int(attrs.groups),
        data_layout="NCHW",
        kernel_layout="OIHW",
    )
