"""Choose an integer kernel for each operator that the frontend has brought into integers.

Convolutions, dense layers and global averages are anchors, with what `chain.py` follows after them
and the padding before them; sums of two tensors and the quantized input of the model are found from
their rounding. What has another form stays, for the fallback.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tvm_mobilenet._tvm import IRModule, PrimFunc
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.schedule.anchors import is_to_nhwc, pair_of, reduced_axes
from tvm_mobilenet.schedule.integer.byte_functions import ByteFunctions
from tvm_mobilenet.schedule.integer.chain import IntegerTail, TailFollower, element_type, scalar
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
    write_integer_add,
    write_integer_pool,
    write_quantize,
)
from tvm_mobilenet.schedule.integer.generic import generic
from tvm_mobilenet.schedule.integer.matmul import (
    can_multiply,
    pack_integer_matmul,
    plan_integer_matmul,
    write_integer_matmul,
)
from tvm_mobilenet.schedule.integer.requantize import is_safe
from tvm_mobilenet.schedule.integer.scale import plan_integer_scale, write_integer_scale
from tvm_mobilenet.schedule.integer.table import can_look_up, plan_table, write_table
from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    ByteWorkload,
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerScaleWorkload,
    IntegerTableWorkload,
    IntegerWorkload,
    QuantizeWorkload,
)
from tvm_mobilenet.schedule.kernel_calls import KernelCalls

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["IntegerKernel", "select_integer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IntegerKernel:
    """One integer kernel of the module: what it computes and how."""

    symbol: str
    family: str
    workload: IntegerWorkload | ByteWorkload
    plan: Any
    origin: Literal["computed", "tuned"] = "computed"


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
    selector = _IntegerSelector(mod, cpu, recorded)
    for binding in selector.flow.bindings:
        selector.visit(binding)
    if not selector.kernels:
        return mod, []
    return selector.calls.module(), selector.kernels


class _IntegerSelector:
    def __init__(
        self, mod: IRModule, cpu: Cpu, recorded: Callable[[str, IntegerWorkload], Any] | None
    ) -> None:
        self._recorded = recorded or (lambda _family, _workload: None)
        self._tuned: set[tuple[str, IntegerWorkload]] = set()
        self.flow = Dataflow(mod)
        self.calls = KernelCalls(self.flow)
        self.kernels: list[IntegerKernel] = []
        self._cpu = cpu
        self._users = self.flow.users()
        self._tails = TailFollower(self._users)
        self._definitions = self.flow.definitions()
        self._functions = ByteFunctions(self._definitions)

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one binding if it is an anchor."""
        if self.calls.has_taken(binding.var):
            return
        if is_call(binding.value, "nn.conv2d") and element_type(binding.var) == "int32":
            self._say(binding, self._convolution(binding))
        elif is_call(binding.value, "matmul") and element_type(binding.var) == "int32":
            self._say(binding, self._dense(binding))
        elif is_call(binding.value, "sum") and element_type(binding.var) == "int32":
            self._say(binding, self._pool(binding))
        elif is_call(binding.value, "round"):
            self._rounded(binding)

    def _say(self, binding: Binding, reason: str | None) -> None:
        if reason is not None:
            logger.info("%s: no integer kernel: %s", binding.var.name, reason)

    # -- anchors ----------------------------------------------------------------------------

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
        tail = self._tails.follow(binding.var)
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
            depthwise = self._plan("int8_depthwise", workload, plan_integer_depthwise)
            filters = pack_integer_depthwise(weight[:, :, :, 0], bias, scale, dtype, depthwise)
            self._place(
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
        plan = self._plan("int8_conv", workload, plan_integer_conv)
        packed = pack_integer_conv(weight, bias, scale, dtype, plan)
        self._place(
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
        tail = self._tails.follow(binding.var)
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
        plan = self._plan(family, workload, plan_integer_matmul)
        packed = pack_integer_matmul(matrix, bias, scale, dtype, plan)
        self._place(
            tail,
            family,
            workload,
            packed.plan,
            [x, *packed.arrays],
            lambda: write_integer_matmul(workload, packed, x_shape=x_shape, y_shape=y_shape),
        )

    def _pool(self, binding: Binding) -> str | None:
        call = binding.value
        wide = self._definitions.get(call.args[0])
        if not is_call(wide, "astype"):
            return "it sums what is no byte"
        x = wide.args[0]
        shape, dtype = static_shape(x), element_type(x)
        axes = reduced_axes(call)
        if len(shape) != 4 or axes != [1, 2] or dtype not in RANGES:
            return f"a sum over axes {axes} of {dtype}"
        tail = self._tails.follow(binding.var)
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
        plan = self._plan("int8_pool", workload, plan_elementwise)
        y_shape = static_shape(tail.last)
        self._place(
            tail,
            "int8_pool",
            workload,
            plan,
            [x],
            lambda: write_integer_pool(workload, plan, x_shape=shape, y_shape=y_shape),
        )
        return None

    # -- found from their rounding -----------------------------------------------------------

    def _rounded(self, binding: Binding) -> None:
        source = binding.value.args[0]
        value = self._definitions.get(source)
        tail = IntegerTail(source)
        if not self._tails.rounding(tail, binding):
            return
        if is_call(value, "add"):
            self._sum(tail, value)
        elif is_call(value, "divide"):
            self._quantize(tail, value)
        elif is_call(value, "multiply") and not self._table(tail):
            self._scale(tail, value)

    def _sum(self, tail: IntegerTail, value: Any) -> None:
        operands = [self._operand(arg) for arg in value.args]
        shape = static_shape(tail.last)
        if tail.requantize is None or any(o is None for o in operands):
            return
        (a, a_zero, a_factor), (b, b_zero, b_factor) = operands  # type: ignore[misc]
        if static_shape(a) != shape or static_shape(b) != shape:
            return
        safe = is_safe(255, abs(a_factor)) and is_safe(255, abs(b_factor))
        workload = IntegerAddWorkload(
            elements=math.prod(shape),
            a_dtype="int8" if element_type(a) == "int8" else "uint8",
            a_zero_point=a_zero,
            a_factor=a_factor,
            b_dtype="int8" if element_type(b) == "int8" else "uint8",
            b_zero_point=b_zero,
            b_factor=b_factor,
            requantize=replace(tail.requantize, may_overflow=not safe),
        )
        plan = self._plan("int8_add", workload, plan_elementwise)
        self._place(
            tail,
            "int8_add",
            workload,
            plan,
            [a, b],
            lambda: write_integer_add(workload, plan, shape=shape),
        )

    def _table(self, tail: IntegerTail) -> bool:
        """Look up what is a function of one byte, where the processor can."""
        x = self._functions.source_of(tail.last)
        if x is None or not can_look_up(self._cpu):
            return False
        shape = static_shape(tail.last)
        workload = IntegerTableWorkload(
            elements=math.prod(shape),
            x_dtype="int8" if element_type(x) == "int8" else "uint8",
            y_dtype="int8" if element_type(tail.last) == "int8" else "uint8",
        )
        plan = plan_table(workload, self._cpu)
        self._place(
            tail,
            "int8_table",
            workload,
            plan,
            [x, self._functions.table(tail.last, x)],
            lambda: write_table(workload, plan, shape=shape),
        )
        return True

    def _scale(self, tail: IntegerTail, value: Any) -> None:
        """Multiply an image by one number for each of its channels."""
        factor, product = scalar(value.args[1]), self._definitions.get(value.args[0])
        if factor is None or tail.requantize is None or not is_call(product, "multiply"):
            return
        found = self._gated(product, static_shape(tail.last))
        if found is None:
            return
        (image, image_zero), (gate, gate_zero) = found
        shape, gate_shape = static_shape(image), static_shape(gate)
        safe = is_safe(255 * 255, abs(factor))
        workload = IntegerScaleWorkload(
            batch=shape[0],
            pixels=shape[1] * shape[2],
            channels=shape[3],
            x_dtype="int8" if element_type(image) == "int8" else "uint8",
            x_zero_point=image_zero,
            gate_dtype="int8" if element_type(gate) == "int8" else "uint8",
            gate_zero_point=gate_zero,
            factor=factor,
            requantize=replace(tail.requantize, may_overflow=not safe),
        )
        plan = plan_integer_scale(workload, self._cpu)
        self._place(
            tail,
            "int8_scale",
            workload,
            plan,
            [image, gate],
            lambda: write_integer_scale(workload, plan, x_shape=shape, gate_shape=gate_shape),
        )

    def _gated(
        self, product: Any, shape: tuple[int, ...]
    ) -> tuple[tuple[Any, int], tuple[Any, int]] | None:
        """Return image and gate of a product, each with its zero point."""
        if len(shape) != 4:
            return None
        for pair in (tuple(product.args), tuple(reversed(product.args))):
            image, gate = (self._centred(arg) for arg in pair)
            if image is None or gate is None or static_shape(image[0]) != shape:
                continue
            if static_shape(gate[0]) == (shape[0], 1, 1, shape[3]):
                return image, gate
        return None

    def _operand(self, expr: Any) -> tuple[Any, int, float] | None:
        """Read (astype(x) - zero point) * factor backwards."""
        value = self._definitions.get(expr)
        if not is_call(value, "multiply"):
            return None
        factor, found = scalar(value.args[1]), self._centred(value.args[0])
        return None if factor is None or found is None else (*found, factor)

    def _centred(self, expr: Any) -> tuple[Any, int] | None:
        """Read astype(x) - zero point backwards."""
        inner = self._definitions.get(expr)
        zero = 0.0
        if is_call(inner, "subtract"):
            found = scalar(inner.args[1])
            if found is None:
                return None
            zero, inner = found, self._definitions.get(inner.args[0])
        if not is_call(inner, "astype") or not zero.is_integer():
            return None
        x = inner.args[0]
        return (x, int(zero)) if element_type(x) in RANGES else None

    def _quantize(self, tail: IntegerTail, value: Any) -> None:
        """Quantize the model's input, and lay it out as NHWC on the way where that follows."""
        step, x = scalar(value.args[1]), value.args[0]
        if step is None or tail.requantize is None or element_type(x) != "float32":
            return
        shape = static_shape(x)
        batch, channels, pixels = 1, 1, math.prod(shape)
        before = self._definitions.get(x)
        readers = self._users.get(tail.last, [])
        if len(shape) == 4 and is_to_nhwc(before):
            x = before.args[0]
            batch, channels, pixels = shape[0], shape[3], shape[1] * shape[2]
        elif len(readers) == 1 and readers[0].var is not None and is_to_nhwc(readers[0].value):
            tail.last = readers[0].var
            tail.members.append(tail.last)
            batch, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
        if channels > 4:
            return
        workload = QuantizeWorkload(
            batch=batch,
            channels=channels,
            pixels=pixels,
            step=step,
            requantize=replace(tail.requantize, may_overflow=True),
        )
        plan = self._plan("int8_quantize", workload, plan_elementwise)
        x_shape, y_shape = static_shape(x), static_shape(tail.last)
        self._place(
            tail,
            "int8_quantize",
            workload,
            plan,
            [x],
            lambda: write_quantize(workload, plan, x_shape=x_shape, y_shape=y_shape),
        )

    # -- what goes into a kernel ------------------------------------------------------------

    def _padded(self, x: Any) -> tuple[Any, tuple[int, int, int, int], int]:
        """Read through padding of the image; returns what is padded, by how much and with what."""
        value = self._definitions.get(x)
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

    def _plan(self, family: str, workload: Any, compute: Callable[..., Any]) -> Any:
        """Return the plan recorded for the generic workload, or the computed one."""
        plan = self._recorded(family, generic(workload))
        if plan is None:
            return compute(workload, self._cpu)
        self._tuned.add((family, workload))
        return plan

    def _place(
        self,
        tail: IntegerTail,
        family: str,
        workload: IntegerWorkload | ByteWorkload,
        plan: Any,
        inputs: list[Any],
        write: Callable[[], PrimFunc],
    ) -> None:
        """Put a call of the kernel where the last member of the tail was."""
        what = (workload, plan)
        symbol = self.calls.put(family, what, inputs, tail.last, tail.members, write)
        if symbol is not None:
            is_tuned = (family, workload) in self._tuned
            origin: Literal["computed", "tuned"] = "tuned" if is_tuned else "computed"
            self.kernels.append(IntegerKernel(symbol, family, workload, plan, origin))
