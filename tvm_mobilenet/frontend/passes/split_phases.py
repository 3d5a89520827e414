"""Compute atrous integer convolutions as plain ones, on pictures of every second pixel."""

from __future__ import annotations

import math
from typing import Any

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)

__all__ = ["split_phases"]

_MOST_RATE = 4
"""A rate of d makes d * d pictures, each with a border of its own."""
_ELEMENT_WISE = (
    "add", "astype", "clip", "divide", "maximum", "minimum", "multiply", "round", "subtract",
)  # fmt: skip


def split_phases(mod: IRModule) -> IRModule:
    """Split the picture of an atrous convolution of integers into its phases, in NHWC.

    The integer kernels know no rates. Pixels whose rows and columns leave the same rest when
    divided by the rate never meet pixels of another, so each such phase is a picture of its own.

    Rewrite:
        f(conv2d(nn.pad(x, d * p, zx), w, dilation=d))
            ->  together(f(conv2d(nn.pad(phases(x), p, zx), w)))
    Shapes:
        x (N, H, W, C) int8 or uint8 -> phases (d * d * N, H / d, W / d, C), H and W filled up to
        multiples of d with zx. w (O, kH, kW, C/g) int8. f is the element-wise end of the layer,
        its other operands constants that have no more than channels.

    Only for one rate of 2 to 4, stride 1, and a padding that is a multiple of the rate.
    """
    flow = Dataflow(mod)
    definitions = flow.definitions()
    apart: dict[Any, tuple[Any, int]] = {}
    """What is computed of phases: the variable of theirs for each variable, and their rate."""
    bindings: list[Binding] = []
    for binding in flow.bindings:
        value = binding.value
        split = _split(value, definitions) if is_call(value, "nn.conv2d") else None
        if split is not None:
            rate = _rate(value)
        else:
            found = _reads_phases(value, apart)
            if found is None:
                bindings.append(binding)
                continue
            rate = found
            args = [apart[arg][0] if arg in apart else arg for arg in value.args]
            split = relax.Call(value.op, args, value.attrs, value.ty_args)
        phases = _emitted(bindings, f"{binding.var.name}_phases", split)
        apart[binding.var] = phases, rate
        # Dead where all readers are computed of phases as well; rebuilding leaves it out then.
        bindings.append(Binding(binding.var, _together(bindings, binding.var, phases, rate)))
    return flow.rebuild(bindings)


def _reads_phases(value: Any, apart: dict[Any, tuple[Any, int]]) -> int | None:
    """Return the rate where a call treats alike all pixels of what is computed of phases."""
    if not is_call(value, *_ELEMENT_WISE):
        return None
    rates = set()
    for arg in value.args:
        if isinstance(arg, relax.Var):
            if arg not in apart:
                return None
            rates.add(apart[arg][1])
        else:
            array = constant_array(arg)
            if array is not None and math.prod(array.shape[:-1]) != 1:
                return None
    return rates.pop() if len(rates) == 1 else None


def _rate(conv: Any) -> int:
    return int(conv.attrs.dilation[0])


def _split(conv: Any, definitions: Any) -> Any | None:
    """Return the plain convolution of the phases of what an atrous one reads, or None."""
    attrs, pad = conv.attrs, definitions.get(conv.args[0])
    rate = _rate(conv)
    weight = constant_array(conv.args[1])
    if (
        weight is None
        or weight.dtype.kind != "i"
        or str(attrs.data_layout) != "NHWC"
        or not 2 <= rate <= _MOST_RATE
        or int(attrs.dilation[1]) != rate
        or any(int(s) != 1 for s in attrs.strides)
        or any(int(p) for p in attrs.padding)
        or not is_call(pad, "nn.pad")
    ):
        return None
    widths = [int(width) for width in pad.attrs.pad_width]
    if any(width % rate for width in widths) or any(widths[:2] + widths[6:]):
        return None
    x, zero = pad.args[0], float(pad.attrs.pad_value)
    batch, height, width, channels = static_shape(x)
    rows, columns = math.ceil(height / rate), math.ceil(width / rate)
    below, right = rows * rate - height, columns * rate - width
    if below or right:
        x = relax.op.nn.pad(x, [0, 0, 0, below, 0, right, 0, 0], pad_value=zero)
    x = relax.op.reshape(x, (batch, rows, rate, columns, rate, channels))
    x = relax.op.permute_dims(x, [2, 4, 0, 1, 3, 5])
    x = relax.op.reshape(x, (rate * rate * batch, rows, columns, channels))
    x = relax.op.nn.pad(x, [width // rate for width in widths], pad_value=zero)
    return relax.op.nn.conv2d(
        x,
        conv.args[1],
        strides=1,
        padding=0,
        groups=int(attrs.groups),
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_dtype=str(attrs.out_dtype),
    )


def _together(bindings: list[Binding], var: Any, x: Any, rate: int) -> Any:
    """Put the phases back in their places, and cut off what filled them up."""
    batch, height, width, channels = static_shape(var)
    rows, columns = math.ceil(height / rate), math.ceil(width / rate)
    x = relax.op.reshape(x, (rate, rate, batch, rows, columns, channels))
    x = relax.op.permute_dims(x, [2, 3, 0, 4, 1, 5])
    whole = (rows * rate, columns * rate) == (height, width)
    last = relax.op.reshape(x, (batch, rows * rate, columns * rate, channels))
    if not whole:
        last = relax.op.strided_slice(last, [1, 2], [0, 0], [height, width])
    args = [_emitted(bindings, f"{var.name}_together", last.args[0]), *last.args[1:]]
    return relax.Call(last.op, args, last.attrs, last.ty_args)


def _emitted(bindings: list[Binding], name: str, value: Any) -> Any:
    """Bind a nested expression, one call after the other."""

    def bind(expr: Any, suffix: str) -> Any:
        if not isinstance(expr, relax.Call):
            return expr
        args = [bind(arg, f"{suffix}i") for arg in expr.args]
        call = relax.BlockBuilder().normalize(relax.Call(expr.op, args, expr.attrs, expr.ty_args))
        var = relax.DataflowVar(f"{name}{suffix}", call.ty)
        bindings.append(Binding(var, call))
        return var

    return bind(value, "")
