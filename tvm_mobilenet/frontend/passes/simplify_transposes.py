"""Remove transposes that move no data."""

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

__all__ = ["simplify_transposes"]


def simplify_transposes(mod: IRModule) -> IRModule:
    """Remove what a layout change leaves behind.

    Rewrite:
        1. permute_dims(constant)               ->  constant
        2. permute_dims(permute_dims(x, p), q)  ->  permute_dims(x, p[q]), or x where that is none
        3. permute_dims(x) over extents of 1    ->  reshape(x)
        4. reshape(reshape(x))                  ->  reshape(x), or x where that has the shape
        5. permute_dims(nn.pad(x, w), p)        ->  nn.pad(permute_dims(x, p), w[p])
        6. permute_dims(broadcast_to(x, s), p)  ->  broadcast_to(permute_dims(x, p), s[p])
    """
    flow = Dataflow(mod)
    definitions: dict[Any, Any] = {}
    replaced: dict[Any, Any] = {}
    bindings = []
    for binding in flow.bindings:
        value = binding.value
        if is_call(value, "permute_dims"):
            inner = definitions.get(value.args[0])
            if is_call(inner, "nn.pad", "broadcast_to") and _keeps_rank(inner):  # cases 5 and 6
                inside = _simplified(
                    relax.op.permute_dims(inner.args[0], _axes(value)), definitions
                )
                x = inside
                if not isinstance(inside, relax.Var):
                    name = f"{binding.var.name}_inside"
                    x = relax.DataflowVar(name, relax.BlockBuilder().normalize(inside).ty)
                    definitions[x] = inside
                    bindings.append(Binding(x, inside))
                value = (
                    _pad_of(x, inner, _axes(value))
                    if is_call(inner, "nn.pad")
                    else relax.op.broadcast_to(x, static_shape(binding.var))
                )
            else:
                value = _simplified(value, definitions)
        elif is_call(value, "reshape"):
            inner = definitions.get(value.args[0])
            if is_call(inner, "reshape"):  # case 4
                value = relax.op.reshape(inner.args[0], static_shape(binding.var))
        definitions[binding.var] = value
        if isinstance(value, relax.Var):
            replaced[binding.var] = value
        bindings.append(Binding(binding.var, value))
    return flow.rebuild(bindings)


def _keeps_rank(call: Any) -> bool:
    """Tell whether a tensor is padded, or repeated without further axes."""
    return len(static_shape(call.args[0])) == len(static_shape(call))


def _pad_of(x: Any, pad: Any, axes: list[int]) -> Any:
    widths = [int(width) for width in pad.attrs.pad_width]
    turned = [widths[2 * axis + side] for axis in axes for side in (0, 1)]
    value, mode = float(pad.attrs.pad_value), str(pad.attrs.pad_mode)
    return relax.op.nn.pad(x, turned, pad_mode=mode, pad_value=value)


def _axes(call: Any) -> list[int]:
    rank = len(static_shape(call.args[0]))
    if call.attrs.axes is None:
        return list(range(rank))[::-1]
    return [int(axis) % rank for axis in call.attrs.axes]


def _simplified(call: Any, definitions: dict[Any, Any]) -> Any:
    axes = _axes(call)
    x = call.args[0]
    array = constant_array(x)
    if array is not None:  # case 1
        return relax.const(np.ascontiguousarray(array.transpose(axes)))
    inner = definitions.get(x)
    if is_call(inner, "permute_dims"):  # case 2
        first = _axes(inner)
        axes = [first[axis] for axis in axes]
        x = inner.args[0]
        if axes == sorted(axes):
            return x
        call = relax.op.permute_dims(x, axes)
    shape = static_shape(x)
    moved = [axis for axis in axes if shape[axis] != 1]
    if moved == sorted(moved):  # case 3
        wanted = tuple(shape[axis] for axis in axes)
        before = definitions.get(x)
        if is_call(before, "reshape"):  # case 4
            x = before.args[0]
        return x if static_shape(x) == wanted else relax.op.reshape(x, wanted)
    return call
