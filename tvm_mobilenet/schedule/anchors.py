"""Reading the operators that a kernel begins at: the same for processors and GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard, cast, get_args

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import Binding, is_call, static_shape
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    MatmulWorkload,
    ResizeMode,
    ResizeWorkload,
)

__all__ = [
    "conv_workload",
    "gate_of",
    "is_to_nhwc",
    "pair_of",
    "parts_of",
    "pointwise_product",
    "read_input",
    "reduced_axes",
    "resize_workload",
    "unserved_convolution",
]


def unserved_convolution(call: Any, weight: np.ndarray | None, dtypes: Sequence[str]) -> str | None:
    """Return why no kernel family serves a convolution of constant weights of `dtypes`, or None."""
    attrs = call.attrs
    if weight is None:
        return "its weights are not constant"
    if str(weight.dtype) not in dtypes:
        return f"its weights are {weight.dtype}"
    if str(attrs.data_layout) != "NHWC" or str(attrs.kernel_layout) != "OHWI":
        return f"its layout is {attrs.data_layout}"
    groups, channels = int(attrs.groups), static_shape(call.args[0])[3]
    if groups != 1 and not groups == channels == weight.shape[0]:
        return f"{groups} groups of {channels} channels"
    return None


def conv_workload(
    binding: Binding, weight: np.ndarray, layout: Literal["NHWC", "NCHW"], epilogue: Epilogue
) -> ConvWorkload:
    """Describe a convolution with weights (O, kH, kW, I/g) whose input lies in `layout`."""
    call = binding.value
    shape, attrs = static_shape(call.args[0]), call.attrs
    return ConvWorkload(
        batch=shape[0],
        height=shape[1],
        width=shape[2],
        in_channels=shape[3],
        out_channels=weight.shape[0],
        kernel=(weight.shape[1], weight.shape[2]),
        stride=pair_of(attrs.strides),
        dilation=pair_of(attrs.dilation),
        padding=tuple(int(p) for p in attrs.padding),  # type: ignore[arg-type]
        groups=int(attrs.groups),
        input_layout=layout,
        epilogue=epilogue,
        dtype=str(binding.var.ty.dtype),
    )


def pointwise_product(conv: ConvWorkload) -> MatmulWorkload:
    """Return a pointwise convolution as the matrix product over its pixels that it is."""
    return MatmulWorkload(
        rows=conv.batch * conv.height * conv.width,
        depth=conv.in_channels,
        columns=conv.out_channels,
        epilogue=conv.epilogue,
        dtype=conv.dtype,
    )


def gate_of(
    x: Any, definitions: Mapping[Any, Any], users: Mapping[Any, Sequence[Binding]]
) -> tuple[Any, Any] | None:
    """Return image and gate of squeeze-and-excite that only this input is computed from."""
    call = definitions.get(x)
    if not is_call(call, "multiply") or len(users[x]) != 1:
        return None
    shape = static_shape(x)
    gate_shape = (shape[0], 1, 1, shape[3])
    for image, gate in (tuple(call.args), tuple(reversed(call.args))):
        if static_shape(image) == shape and static_shape(gate) == gate_shape != shape:
            return image, gate
    return None


def parts_of(
    x: Any, definitions: Mapping[Any, Any], users: Mapping[Any, Sequence[Binding]]
) -> list[tuple[Any, bool]] | None:
    """Return what this input is the concatenation of, by channels, if it is read just here.

    Each with whether it is one pixel of each image, to be spread over all of it.
    """
    call = definitions.get(x)
    if not is_call(call, "concat") or len(users[x]) != 1 or int(call.attrs.axis) not in (3, -1):
        return None
    if not isinstance(call.args[0], relax.Tuple):
        return None
    parts = []
    for field in call.args[0].fields:
        value = definitions.get(field)
        part, is_spread = field, False
        if is_call(value, "broadcast_to"):
            batch, _, _, channels = static_shape(field)
            is_spread = static_shape(value.args[0]) == (batch, 1, 1, channels)
            part = value.args[0] if is_spread else field
        if not isinstance(part, relax.Var):
            return None
        parts.append((part, is_spread))
    return parts


def resize_workload(
    binding: Binding, users: Mapping[Any, Sequence[Binding]]
) -> tuple[ResizeWorkload | None, Any]:
    """Describe bilinear resizing, to NCHW where that alone is asked of it, and what it computes."""
    call, out = binding.value, binding.var
    attrs, shape = call.attrs, static_shape(call.args[0])
    mode = str(attrs.coordinate_transformation_mode)
    dtype = str(binding.var.ty.dtype)
    if (
        str(attrs.method) != "linear"
        or str(attrs.layout) != "NHWC"
        or mode not in get_args(ResizeMode)
        or dtype != "float32"
    ):
        return None, out
    size = static_shape(binding.var)
    readers = users.get(binding.var, [])
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    if len(readers) == 1 and readers[0].var is not None and is_to_nchw(readers[0].value):
        layout, out = "NCHW", readers[0].var
    workload = ResizeWorkload(
        batch=shape[0],
        height=shape[1],
        width=shape[2],
        channels=shape[3],
        out_height=size[1],
        out_width=size[2],
        mode=cast(ResizeMode, mode),
        output_layout=layout,
        dtype=dtype,
    )
    return workload, out


def read_input(x: Any, definitions: Mapping[Any, Any]) -> tuple[Any, Literal["NHWC", "NCHW"]]:
    """Read through a transpose from NCHW, which the dense convolution does for nothing."""
    value = definitions.get(x)
    return (value.args[0], "NCHW") if is_to_nhwc(value) else (x, "NHWC")


def is_to_nhwc(value: Any) -> TypeGuard[Any]:
    """Tell whether an expression lays NCHW out as NHWC."""
    return is_call(value, "permute_dims") and list(map(int, value.attrs.axes or [])) == [0, 2, 3, 1]


def is_to_nchw(value: Any) -> bool:
    """Tell whether an expression lays NHWC out as NCHW."""
    return is_call(value, "permute_dims") and list(map(int, value.attrs.axes or [])) == [0, 3, 1, 2]


def reduced_axes(call: Any) -> list[int]:
    """Return the axes that an average or a sum goes over, counted from 0; all of them if unsaid."""
    rank = len(static_shape(call.args[0]))
    return sorted(int(axis) % rank for axis in call.attrs.axis or range(rank))


def pair_of(values: Any) -> tuple[int, int]:
    """Return the two integers of an attribute."""
    first, second = (int(v) for v in values)
    return first, second
