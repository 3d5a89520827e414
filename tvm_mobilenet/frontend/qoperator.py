"""ONNX Runtime's operator form of quantized models (QLinearConv and the like) as QDQ.

Each operator becomes dequantize, the float operator, quantize, which is what it is defined as; the
integer pass then sees one form. Names of tensors stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

from tvm_mobilenet.errors import UnsupportedOpError

__all__ = ["as_qdq"]

_MICROSOFT = "com.microsoft"
_SHARED = ("QuantizeLinear", "DequantizeLinear")
"""Written in ONNX Runtime's own domain by its quantizer if asked to; the same as ONNX's."""


def as_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with quantized operators spelled out; itself where there are none.

    Raises:
        UnsupportedOpError: an operator has its channels last, or scales in a form not known.
    """
    if not any(
        node.op_type in _OPERATORS or node.domain == _MICROSOFT for node in model.graph.node
    ):
        return model
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        spelled = _OPERATORS.get(node.op_type)
        if spelled is not None:
            nodes += spelled(node)
            continue
        if node.domain == _MICROSOFT and node.op_type in _SHARED:
            node.domain = ""
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _attributes(node: onnx.NodeProto, *dropped: str) -> dict[str, Any]:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if found.pop("channels_last", 0):
        raise UnsupportedOpError(
            f"operator {node.op_type} (node {node.name or node.output[0]!r}) cannot be handled: "
            "its channels come last; quantize in the QDQ format"
        )
    return {name: value for name, value in found.items() if name not in dropped}


class _Spelling:
    """The nodes that stand for one."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = node.output[0]

    def dequantize(self, x: str, scale: str, zero: str, axis: int | None = None) -> str:
        output = f"{self._prefix}.in{len(self.nodes)}"
        inputs = [x, scale, zero] if zero else [x, scale]
        node = helper.make_node("DequantizeLinear", inputs, [output], output)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return output

    def operator(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{self._prefix}.float"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], self.node.name or output, **attributes)
        )
        return output

    def quantize(self, x: str, scale: str, zero: str) -> list[onnx.NodeProto]:
        inputs = [x, scale, zero] if zero else [x, scale]
        name = f"{self._prefix}.quantize"
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [self._prefix], name))
        return self.nodes

    def steps_of(self, x_scale: str, w_scale: str) -> str:
        """Return the product of two scales: what an int32 bias is counted in."""
        output = f"{self._prefix}.bias_scale"
        self.nodes.append(helper.make_node("Mul", [x_scale, w_scale], [output], output))
        return output


def _convolution(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.input[:8]
    spelling = _Spelling(node)
    inputs = [
        spelling.dequantize(x, x_scale, x_zero),
        spelling.dequantize(w, w_scale, w_zero, axis=0),
    ]
    if len(node.input) > 8:
        inputs.append(
            spelling.dequantize(node.input[8], spelling.steps_of(x_scale, w_scale), "", 0)
        )
    y = spelling.operator("Conv", inputs, **_attributes(node))
    return spelling.quantize(y, y_scale, y_zero)


def _matmul(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.input[:8]
    spelling = _Spelling(node)
    inputs = [
        spelling.dequantize(x, x_scale, x_zero),
        spelling.dequantize(w, w_scale, w_zero, axis=1),
    ]
    return spelling.quantize(spelling.operator("MatMul", inputs), y_scale, y_zero)


def _gemm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, x_scale, x_zero, w, w_scale, w_zero = node.input[:6]
    rest = list(node.input[6:]) + [""] * (3 - len(node.input[6:]))
    attributes = _attributes(node)
    spelling = _Spelling(node)
    axis = 0 if attributes.get("transB", 0) else 1
    inputs = [
        spelling.dequantize(x, x_scale, x_zero),
        spelling.dequantize(w, w_scale, w_zero, axis=axis),
    ]
    if rest[0]:
        inputs.append(spelling.dequantize(rest[0], spelling.steps_of(x_scale, w_scale), "", 0))
    y = spelling.operator("Gemm", inputs, **attributes)
    if not rest[1]:  # without a scale the output is float32
        spelling.nodes[-1].output[0] = node.output[0]
        return spelling.nodes
    return spelling.quantize(y, rest[1], rest[2])


def _binary(kind: str) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    def spelled(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale = node.input[:7]
        y_zero = node.input[7] if len(node.input) > 7 else ""
        spelling = _Spelling(node)
        inputs = [
            spelling.dequantize(a, a_scale, a_zero),
            spelling.dequantize(b, b_scale, b_zero),
        ]
        return spelling.quantize(spelling.operator(kind, inputs), y_scale, y_zero)

    return spelled


def _unary(kind: str) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    def spelled(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        x, x_scale, x_zero, y_scale = node.input[:4]
        y_zero = node.input[4] if len(node.input) > 4 else ""
        spelling = _Spelling(node)
        y = spelling.operator(kind, [spelling.dequantize(x, x_scale, x_zero)], **_attributes(node))
        return spelling.quantize(y, y_scale, y_zero)

    return spelled


def _concat(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    y_scale, y_zero = node.input[:2]
    spelling = _Spelling(node)
    triples = [node.input[start : start + 3] for start in range(2, len(node.input), 3)]
    inputs = [spelling.dequantize(x, scale, zero) for x, scale, zero in triples]
    return spelling.quantize(
        spelling.operator("Concat", inputs, **_attributes(node)), y_scale, y_zero
    )


_OPERATORS: dict[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _convolution,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
}
"""Others are refused by the importer, by their names."""
