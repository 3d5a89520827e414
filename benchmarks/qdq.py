"""What the QuantizeLinear and DequantizeLinear nodes of an ONNX file say of its tensors.

A QDQ file computes in float on paper: every integer tensor is dequantized before an operator and
the result quantized after it. An engine that computes with integers reads these pairs as a note on
the tensor between them, and so do the converters here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx

from benchmarks.onnx_graph import GraphError, OnnxGraph, attributes

__all__ = ["QdqGraph", "QuantizedConstant", "Scheme", "read_qdq"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How real numbers are stored: `real = scale * (stored - zero_point)`, stored as int8.

    What ONNX stores as uint8 is told here as int8: stored and zero point both 128 lower, the same
    reals.
    """

    scale: tuple[float, ...]
    """One number, or one for each channel."""
    zero_point: int
    axis: int = 0
    """The axis of the channels, where there is more than one scale."""


@dataclass(frozen=True, slots=True)
class QuantizedConstant:
    """A constant that the file holds as integers."""

    values: np.ndarray
    """int8, or int32 for a bias."""
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class QdqGraph:
    """The notes of one graph, by tensor name."""

    constants: dict[str, QuantizedConstant]
    """Of dequantized constants, by the float tensor's name."""
    schemes: dict[str, Scheme]
    """Of quantized activations, by the integer tensor's name."""
    nodes: tuple[onnx.NodeProto, ...]
    """What is computed: the graph's nodes, less those that dequantize constants."""
    readers: dict[str, list[onnx.NodeProto]]

    @property
    def is_quantized(self) -> bool:
        """Whether any activation is."""
        return bool(self.schemes)


def read_qdq(graph: OnnxGraph) -> QdqGraph:
    """Collect what the file says of its integer tensors.

    Raises:
        GraphError: a tensor is stored in more than 8 bits, or has several zero points.
    """
    constants: dict[str, QuantizedConstant] = {}
    schemes: dict[str, Scheme] = {}
    nodes: list[onnx.NodeProto] = []
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            constants[node.output[0]] = _constant(node, graph)
            continue
        nodes.append(node)
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "QuantizeLinear":
            schemes[node.output[0]] = _scheme(node, graph, _stored_type(node, graph))
    return QdqGraph(constants, schemes, tuple(nodes), dict(readers))


def _stored_type(node: onnx.NodeProto, graph: OnnxGraph) -> np.dtype:
    if len(node.input) > 2 and node.input[2]:
        return _parameter(node, graph, 2).dtype
    return np.dtype(np.uint8)  # the operator's default


def _parameter(node: onnx.NodeProto, graph: OnnxGraph, position: int) -> np.ndarray:
    try:
        return graph.constants[node.input[position]]
    except KeyError:
        raise GraphError(
            f"{node.op_type} node {node.name or node.output[0]!r} computes its scale or zero point"
        ) from None


def _scheme(node: onnx.NodeProto, graph: OnnxGraph, stored: np.dtype) -> Scheme:
    where = f"{node.op_type} node {node.name or node.output[0]!r}"
    if stored not in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)):
        raise GraphError(f"{where} stores {stored}, expected is int8 or uint8")
    zero_points = np.zeros(1, np.int64)
    if len(node.input) > 2 and node.input[2]:
        zero_points = _parameter(node, graph, 2).astype(np.int64).reshape(-1)
    if len(set(zero_points.tolist())) != 1:
        raise GraphError(f"{where} has several zero points, expected is one for all channels")
    shift = 128 if stored == np.uint8 else 0
    scale = tuple(map(float, _parameter(node, graph, 1).reshape(-1)))
    axis = attributes(node).get("axis", 1)
    return Scheme(scale, int(zero_points[0]) - shift, axis if len(scale) > 1 else 0)


def _constant(node: onnx.NodeProto, graph: OnnxGraph) -> QuantizedConstant:
    values = graph.constants[node.input[0]]
    scheme = _scheme(node, graph, values.dtype)
    if values.dtype == np.uint8:
        values = (values.astype(np.int16) - 128).astype(np.int8)
    return QuantizedConstant(values, scheme)
