"""Kernels that are found from their rounding: sums, gates, tables, the quantized input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm_mobilenet.frontend.dataflow import Binding, is_call, static_shape
from tvm_mobilenet.schedule.anchors import is_to_nhwc
from tvm_mobilenet.schedule.integer.byte_functions import ByteFunctions
from tvm_mobilenet.schedule.integer.chain import IntegerTail, element_type, scalar
from tvm_mobilenet.schedule.integer.elementwise import (
    plan_elementwise,
    write_integer_add,
    write_quantize,
)
from tvm_mobilenet.schedule.integer.requantize import is_safe
from tvm_mobilenet.schedule.integer.scale import plan_integer_scale, write_integer_scale
from tvm_mobilenet.schedule.integer.selection import IntegerSelection
from tvm_mobilenet.schedule.integer.table import can_look_up, plan_table, write_table
from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerAddWorkload,
    IntegerScaleWorkload,
    IntegerTableWorkload,
    QuantizeWorkload,
)

__all__ = ["RoundedOperators"]


class RoundedOperators:
    """Chooses kernels for what ends in a `round` that no anchor has taken over.

    Args:
        selection: where they are placed.
    """

    def __init__(self, selection: IntegerSelection) -> None:
        self._selection = selection
        self._functions = ByteFunctions(selection.definitions)

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one `round`, if what is before it has one."""
        source = binding.value.args[0]
        value = self._selection.definitions.get(source)
        tail = IntegerTail(source)
        if not self._selection.tails.rounding(tail, binding):
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
        plan = self._selection.plan("int8_add", workload, plan_elementwise)
        self._selection.place(
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
        if x is None or not can_look_up(self._selection.cpu):
            return False
        shape = static_shape(tail.last)
        workload = IntegerTableWorkload(
            elements=math.prod(shape),
            x_dtype="int8" if element_type(x) == "int8" else "uint8",
            y_dtype="int8" if element_type(tail.last) == "int8" else "uint8",
        )
        plan = plan_table(workload, self._selection.cpu)
        self._selection.place(
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
        factor, product = scalar(value.args[1]), self._selection.definitions.get(value.args[0])
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
        plan = plan_integer_scale(workload, self._selection.cpu)
        self._selection.place(
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
        value = self._selection.definitions.get(expr)
        if not is_call(value, "multiply"):
            return None
        factor, found = scalar(value.args[1]), self._centred(value.args[0])
        return None if factor is None or found is None else (*found, factor)

    def _centred(self, expr: Any) -> tuple[Any, int] | None:
        """Read astype(x) - zero point backwards."""
        inner = self._selection.definitions.get(expr)
        zero = 0.0
        if is_call(inner, "subtract"):
            found = scalar(inner.args[1])
            if found is None:
                return None
            zero, inner = found, self._selection.definitions.get(inner.args[0])
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
        before = self._selection.definitions.get(x)
        readers = self._selection.users.get(tail.last, [])
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
        plan = self._selection.plan("int8_quantize", workload, plan_elementwise)
        x_shape, y_shape = static_shape(x), static_shape(tail.last)
        self._selection.place(
            tail,
            "int8_quantize",
            workload,
            plan,
            [x],
            lambda: write_quantize(workload, plan, x_shape=x_shape, y_shape=y_shape),
        )
