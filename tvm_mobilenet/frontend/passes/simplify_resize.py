"""Resize as little as possible: one pixel is spread, and a 1x1 convolution comes first."""

from __future__ import annotations

from typing import Any

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)

__all__ = ["simplify_resize"]


def simplify_resize(mod: IRModule) -> IRModule:
    """Take the work out of bilinear resizing that its place in a graph adds.

    Rewrite:
        1. resize2d(x) of one pixel           ->  broadcast_to(x)
        2. add(conv2d(resize2d(x), w), b)     ->  resize2d(add(conv2d(x, w), b))
    Shapes:
        x (N, C, H, W) f32, w (O, C, 1, 1) f32, b (1, O, 1, 1) f32 or none.

    Case 2 where the picture grows and the convolution has no more outputs than inputs: both are
    linear, and the weights of a resized pixel sum to 1, so that the bias commutes too.
    """
    flow = Dataflow(mod)
    definitions, users = flow.definitions(), flow.users()
    replaced: dict[Any, Any] = {}
    bindings: list[Binding] = []
    for binding in flow.bindings:
        value = binding.value
        if _is_linear_resize(value) and static_shape(value.args[0])[2:] == (1, 1):  # case 1
            value = relax.op.broadcast_to(value.args[0], static_shape(binding.var))
        elif binding.var in replaced:
            value = replaced[binding.var]
        elif is_call(value, "nn.conv2d"):
            resize = definitions.get(value.args[0])
            if _commutes(value, resize) and len(users[value.args[0]]) == 1:  # case 2
                value = _convolved_first(binding, resize, users, bindings, replaced)
                if value is None:
                    continue
        bindings.append(Binding(binding.var, value))
    return flow.rebuild(bindings)


def _is_linear_resize(value: Any) -> bool:
    return (
        is_call(value, "image.resize2d")
        and str(value.attrs.method) == "linear"
        and str(value.attrs.layout) == "NCHW"
        and str(value.attrs.coordinate_transformation_mode) != "tf_crop_and_resize"
    )


def _commutes(conv: Any, resize: Any) -> bool:
    """Tell whether a convolution of a resized map can as well be taken of the map itself."""
    weight = constant_array(conv.args[1])
    if weight is None or not _is_linear_resize(resize):
        return False
    attrs = conv.attrs
    is_plain = (
        weight.shape[2:] == (1, 1)
        and int(attrs.groups) == 1
        and str(attrs.data_layout) == "NCHW"
        and all(int(s) == 1 for s in attrs.strides)
        and not any(int(p) for p in attrs.padding)
    )
    before, after = static_shape(resize.args[0])[2:], static_shape(resize)[2:]
    grows = after[0] >= before[0] and after[1] >= before[1] and before != (1, 1)
    return is_plain and grows and weight.shape[0] <= weight.shape[1]


def _convolved_first(
    conv: Binding,
    resize: Any,
    users: Any,
    bindings: list[Binding],
    replaced: dict[Any, Any],
) -> Any | None:
    """Append the convolution and its bias; return the resize, or None where the bias has it."""
    small = _emit(bindings, f"{conv.var.name}_before_resize", _with_input(conv.value, resize))
    readers = users.get(conv.var, [])
    if len(readers) == 1 and readers[0].var is not None and is_call(readers[0].value, "add"):
        add = readers[0]
        other = add.value.args[1] if add.value.args[0].same_as(conv.var) else add.value.args[0]
        bias = constant_array(other)
        if bias is not None and bias.size in (1, static_shape(conv.var)[1]) and bias.ndim in (0, 4):
            name = f"{add.var.name}_before_resize"
            biased = _emit(bindings, name, relax.op.add(small, other))
            replaced[add.var] = _resized(resize, biased)
            return None
    return _resized(resize, small)


def _with_input(conv: Any, resize: Any) -> Any:
    return relax.op.nn.conv2d(
        resize.args[0], conv.args[1], data_layout="NCHW", kernel_layout="OIHW"
    )


def _resized(resize: Any, x: Any) -> Any:
    return relax.Call(resize.op, [x, resize.args[1]], resize.attrs, resize.ty_args)


def _emit(bindings: list[Binding], name: str, value: Any) -> Any:
    normalized = relax.BlockBuilder().normalize(value)
    var = relax.DataflowVar(name, normalized.ty)
    bindings.append(Binding(var, normalized))
    return var
