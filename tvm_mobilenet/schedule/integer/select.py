"""Choose an integer kernel for each operator that the frontend has brought into integers.

Convolutions, dense layers and global averages are anchors, with what `chain.py` follows after them
and the padding before them; `rounded.py` has what is found from its rounding. What has another form
stays, for the fallback.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.schedule.anchors import pair_of, reduced_axes
from tvm_mobilenet.schedule.integer.chain import IntegerTail, element_type
from tvm_mobilenet.schedule.integer.convolution import (
    pack_integer_conv,
    plan_integer_conv,
    write_integer_conv,
)
from tvm_mobilenet.schedule.integer.depthwise import (
    pack_integer_depthwise,
    plan_integer_depthwise,
    write_integer_depthwise,
)
from tvm_mobilenet.schedule.integer.elementwise import (
    plan_elementwise,
    write_integer_pool,
)
from tvm_mobilenet.schedule.integer.matmul import (
    can_multiply,
    pack_integer_matmul,
    plan_integer_matmul,
    write_integer_matmul,
)
from tvm_mobilenet.schedule.integer.requantize import is_safe
from tvm_mobilenet.schedule.integer.rounded import RoundedOperators
from tvm_mobilenet.schedule.integer.selection import IntegerKernel, IntegerSelection
from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["IntegerKernel", "select_integer"]

logger = logging.getLogger(__name__)


def select_integer(
    mod: IRModule, cpu: Cpu, recorded: Callable[[str, IntegerWorkload], Any] | None = None
) -> tuple[IRModule, list[IntegerKernel]]:
    """Replace each integer operator by a call of a kernel written for it.

    Rewrite:
        requantize(multiply(astype(add(conv2d(pad(x), w), bias)), scale))
            ->  call_tir(kernel, (x, packed, bias, scale))
    Shapes:
        x (N, H, W, C) int8 or uint8, w (O, kH, kW, I/g) int8, result (N, H, W, O).

    A module without integer operators is returned as it is. Where `recorded` has no plan for the
    generic workload of a kernel, one is computed.
    """
    selector = _IntegerSelector(IntegerSelection(mod, cpu, recorded))
    for binding in selector.selection.flow.bindings:
        selector.visit(binding)
    kernels = selector.selection.kernels
    return (selector.selection.calls.module(), kernels) if kernels else (mod, [])


class _IntegerSelector:
    def __init__(self, selection: IntegerSelection) -> None:
        self.selection = selection
        self._rounded = RoundedOperators(selection)

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one binding if it is an anchor."""
        if self.selection.calls.has_taken(binding.var):
            return
        if is_call(binding.value, "nn.conv2d") and element_type(binding.var) == "int32":
            self._say(binding, self._convolution(binding))
        elif is_call(binding.value, "matmul") and element_type(binding.var) == "int32":
            self._say(binding, self._dense(binding))
        elif is_call(binding.value, "sum") and element_type(binding.var) == "int32":
            self._say(binding, self._pool(binding))
        elif is_call(binding.value, "round"):
            self._rounded.visit(binding)

    def _say(self, binding: Binding, reason: str | None) -> None:
        if reason is not None:
            logger.info("%s: no integer kernel: %s", binding.var.name, reason)

    def _convolution(self, binding: Binding) -> str | None:
        call = binding.value
        weight = constant_array(call.args[1])
        if weight is None or weight.dtype != np.int8:
            return "its weights are no int8 constant"
        attrs = call.attrs
        if str(attrs.data_layout) != "NHWC" or str(attrs.kernel_layout) != "OHWI":
            return f"its layout is {attrs.data_layout}"
        if any(int(d) != 1 for d in attrs.dilation) or any(int(p) for p in attrs.padding):
            return "it is dilated, or pads with 0"
        source, padding, pad = self._padded(call.args[0])
        dtype = element_type(source)
        tail = self.selection.tails.follow(binding.var)
        if tail is None or dtype not in RANGES:
            return "its result is not scaled"
        shape, channels = static_shape(source), weight.shape[0]
        workload = IntegerConvWorkload(
            batch=shape[0],
            height=shape[1],
            width=shape[2],
            in_channels=shape[3],
            out_channels=channels,
            kernel=(weight.shape[1], weight.shape[2]),
            stride=pair_of(attrs.strides),
            padding=padding,
            pad=pad,
            groups=int(attrs.groups),
            dtype="int8" if dtype == "int8" else "uint8",
            requantize=None,
        )
        bias, scale = self._end(tail, weight.reshape(channels, -1).T)
        workload = replace(workload, requantize=tail.requantize)
        if workload.is_depthwise and tail.requantize is not None:
            depthwise = self.selection.plan("int8_depthwise", workload, plan_integer_depthwise)
            filters = pack_integer_depthwise(weight[:, :, :, 0], bias, scale, dtype, depthwise)
            self.selection.place(
                tail,
                "int8_depthwise",
                workload,
                filters.plan,
                [source, *filters.arrays],
                lambda: write_integer_depthwise(workload, filters),
            )
            return None
        if workload.groups != 1:
            return f"{workload.groups} groups of {shape[3]} channels"
        if workload.is_pointwise and can_multiply(workload.in_channels):
            self._product(
                tail, "int8_pointwise", source, weight.reshape(channels, -1).T, bias, scale
            )
            return None
        plan = self.selection.plan("int8_conv", workload, plan_integer_conv)
        packed = pack_integer_conv(weight, bias, scale, dtype, plan)
        self.selection.place(
            tail,
            "int8_conv",
            workload,
            packed.plan,
            [source, *packed.arrays],
            lambda: write_integer_conv(workload, packed),
        )
        return None

    def _dense(self, binding: Binding) -> str | None:
        x, weight = binding.value.args[0], constant_array(binding.value.args[1])
        shape = static_shape(x)
        if weight is None or weight.dtype != np.int8 or weight.ndim != 2 or len(shape) < 2:
            return "it is no product with an int8 constant"
        if element_type(x) not in RANGES or not can_multiply(shape[-1]):
            return f"rows of {shape[-1]} {element_type(x)}"
        tail = self.selection.tails.follow(binding.var)
        if tail is None:
            return "its result is not scaled"
        bias, scale = self._end(tail, weight)
        self._product(tail, "int8_dense", x, weight, bias, scale)
        return None

    def _product(
        self,
        tail: IntegerTail,
        family: str,
        x: Any,
        matrix: np.ndarray,
        bias: np.ndarray,
        scale: np.ndarray,
    ) -> None:
        x_shape, y_shape = static_shape(x), static_shape(tail.last)
        dtype = element_type(x)
        workload = IntegerMatmulWorkload(
            rows=math.prod(x_shape[:-1]),
            depth=x_shape[-1],
            columns=matrix.shape[1],
            dtype="int8" if dtype == "int8" else "uint8",
            requantize=tail.requantize,
        )
        plan = self.selection.plan(family, workload, plan_integer_matmul)
        packed = pack_integer_matmul(matrix, bias, scale, dtype, plan)
        self.selection.place(
            tail,
            family,
            workload,
            packed.plan,
            [x, *packed.arrays],
            lambda: write_integer_matmul(workload, packed, x_shape=x_shape, y_shape=y_shape),
        )

    def _pool(self, binding: Binding) -> str | None:
        call = binding.value
        wide = self.selection.definitions.get(call.args[0])
        if not is_call(wide, "astype"):
            return "it sums what is no byte"
        x = wide.args[0]
        shape, dtype = static_shape(x), element_type(x)
        axes = reduced_axes(call)
        if len(shape) != 4 or axes != [1, 2] or dtype not in RANGES:
            return f"a sum over axes {axes} of {dtype}"
        tail = self.selection.tails.follow(binding.var)
        if tail is None or tail.requantize is None or tail.scale is None or tail.scale.size != 1:
            return "its result is not quantized with one scale"
        bias = 0 if tail.bias is None else int(tail.bias[0])
        if tail.bias is not None and tail.bias.size != 1:
            return "its bias differs from channel to channel"
        pixels, scale = shape[1] * shape[2], float(tail.scale[0])
        safe = is_safe(255 * pixels + abs(bias), abs(scale))
        workload = IntegerPoolWorkload(
            batch=shape[0],
            pixels=pixels,
            channels=shape[3],
            bias=bias,
            scale=scale,
            dtype="int8" if dtype == "int8" else "uint8",
            requantize=replace(tail.requantize, may_overflow=not safe),
        )
        plan = self.selection.plan("int8_pool", workload, plan_elementwise)
        y_shape = static_shape(tail.last)
        self.selection.place(
            tail,
            "int8_pool",
            workload,
            plan,
            [x],
            lambda: write_integer_pool(workload, plan, x_shape=shape, y_shape=y_shape),
        )
        return None

    # -- what goes into a kernel ------------------------------------------------------------

    def _padded(self, x: Any) -> tuple[Any, tuple[int, int, int, int], int]:
        """Read through padding of the image; returns what is padded, by how much and with what."""
        value = self.selection.definitions.get(x)
        if is_call(value, "nn.pad") and str(value.attrs.pad_mode) == "constant":
            widths = [int(width) for width in value.attrs.pad_width]
            number = float(value.attrs.pad_value)
            if len(widths) == 8 and not any(widths[:2] + widths[6:]) and number.is_integer():
                top, bottom, left, right = widths[2:6]
                return value.args[0], (top, left, bottom, right), int(number)
        return x, (0, 0, 0, 0), 0

    def _end(self, tail: IntegerTail, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and scale for each column of (depth, columns), and see what may overflow."""
        columns = matrix.shape[1]
        bias = np.zeros(1, np.int32) if tail.bias is None else tail.bias
        assert tail.scale is not None
        bias = np.broadcast_to(bias, (columns,)).astype(np.int32)
        scale = np.broadcast_to(tail.scale, (columns,)).astype(np.float32)
        largest = 255 * np.abs(matrix.astype(np.int64)).sum(axis=0) + np.abs(bias.astype(np.int64))
        if tail.requantize is not None:
            safe = all(is_safe(a, abs(b)) for a, b in zip(largest, scale, strict=True))
            tail.requantize = replace(tail.requantize, may_overflow=not safe)
        return bias, scale
