"""Reading the operators that a kernel begins at: the same for processors and GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np

from tvm_mobilenet.frontend.dataflow import Binding, is_call, static_shape
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload

__all__ = [
    "conv_workload",
    "gate_of",
    "is_to_nhwc",
    "pair_of",
    "pointwise_product",
    "read_input",
    "reduced_axes",
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


def read_input(x: Any, definitions: Mapping[Any, Any]) -> tuple[Any, Literal["NHWC", "NCHW"]]:
    """Read through a transpose from NCHW, which the dense convolution does for nothing."""
    value = definitions.get(x)
    return (value.args[0], "NCHW") if is_to_nhwc(value) else (x, "NHWC")


def is_to_nhwc(value: Any) -> TypeGuard[Any]:
    """Tell whether an expression lays NCHW out as NHWC."""
    return is_call(value, "permute_dims") and list(map(int, value.attrs.axes or [])) == [0, 2, 3, 1]


def reduced_axes(call: Any) -> list[int]:
    """Return the axes that an average or a sum goes over, counted from 0; all of them if unsaid."""
    rank = len(static_shape(call.args[0]))
    return sorted(int(axis) % rank for axis in call.attrs.axis or range(rank))


def pair_of(values: Any) -> tuple[int, int]:
    """Return the two integers of an attribute."""
    first, second = (int(v) for v in values)
    return first, second
