"""A float ONNX graph, prepared for quantization and easy to walk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from tvm_mobilenet.detection.onnx_function import network_outputs
from tvm_mobilenet.errors import QuantizeError
from tvm_mobilenet.onnx_file import METADATA_KEY

__all__ = ["FloatGraph", "Layer", "carry_metadata", "prepare"]

Array = npt.NDArray[np.float32]

_OPSET = 13
"""Scales for each channel came with it."""


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer with constant weights."""

    name: str
    """Of its node."""
    operator: str
    x: str
    weight: str
    bias: str | None
    y: str
    groups: int
    out_axis: int
    """Of the weights: which axis counts the outputs."""

    @property
    def in_axis(self) -> int:
        """Of the weights: which axis counts the inputs (of one group)."""
        return 1 - self.out_axis


class FloatGraph:
    """A model whose weights can be read and written by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.producers[name] = node
        self.outputs = set(network_outputs(model))
        """What noise is measured at; of a detector what its heads compute, whose order is fixed."""
        self.layers = [layer for node in model.graph.node if (layer := self._layer(node))]

    def weights(self, name: str) -> Array:
        """Return a constant."""
        return numpy_helper.to_array(self._tensors[name])

    def set_weights(self, name: str, value: Array) -> None:
        """Replace a constant."""
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def scalar(self, name: str) -> float | None:
        """Return a constant of one element, or None."""
        if name not in self._tensors:
            return None
        value = numpy_helper.to_array(self._tensors[name])
        return float(value.reshape(())) if value.size == 1 else None

    def bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """Return the bounds of a ReLU or a Clip with constant ones, else None."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        if node.op_type != "Clip":
            return None
        ends = [-np.inf, np.inf]
        for index, name in enumerate(node.input[1:3]):
            if name:
                value = self.scalar(name)
                if value is None:
                    return None
                ends[index] = value
        return ends[0], ends[1]

    def _layer(self, node: onnx.NodeProto) -> Layer | None:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in self._tensors:
            return None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        rank = len(self._tensors[node.input[1]].dims)
        if node.op_type == "Conv" and rank == 4:
            out_axis = 0
        elif node.op_type != "Conv" and rank == 2:
            out_axis = 0 if attributes.get("transB", 0) else 1
        else:
            return None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in self._tensors else None
        return Layer(
            node.name,
            node.op_type,
            node.input[0],
            node.input[1],
            bias,
            node.output[0],
            int(attributes.get("group", 1)),
            out_axis,
        )


def prepare(model: onnx.ModelProto) -> FloatGraph:
    """Return a copy of a model in the form that the quantizer works on.

    Every node has a name, every convolution and Gemm a bias and weights of its own, a mean over
    height and width is a GlobalAveragePool, whose integer form other engines know, and batch norms
    are folded.

    Raises:
        QuantizeError: the model is quantized already, or has nothing to quantize.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise QuantizeError("the model is quantized already; give the float one")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < _OPSET:
        model = onnx.version_converter.convert_version(model, _OPSET)
    _constants_to_initializers(model.graph)
    _name_nodes(model.graph)
    _own_weights(model.graph)
    _fold_batch_norms(model.graph)
    _add_biases(model.graph)
    _means_to_pools(model.graph)
    _drop_unread(model.graph)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = FloatGraph(model)
    if not graph.layers:
        raise QuantizeError(
            "the model holds no convolution or dense layer with constant weights; there is "
            "nothing to quantize"
        )
    return graph


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                graph.initializer.append(tensor)
                graph.node.remove(node)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for node in graph.node:
        name = node.name or node.output[0]
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def _own_weights(graph: onnx.GraphProto) -> None:
    """Give every layer weights of its own: equalizing one must not change another."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    used: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        for index in range(1, len(node.input)):
            name = node.input[index]
            if name not in tensors:
                continue
            if name in used:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensors[name])
                copy.name = f"{name}__{node.name}"
                graph.initializer.append(copy)
                node.input[index] = copy.name
            used.add(name)


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Fold inference batch norms into the convolutions before them."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    outputs = {value.name for value in graph.output}
    for norm in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        is_foldable = (
            conv is not None
            and conv.op_type == "Conv"
            and readers[norm.input[0]] == 1
            and norm.input[0] not in outputs
            and all(name in tensors for name in [conv.input[1], *norm.input[1:]])
        )
        if not is_foldable or conv is None:
            continue
        gamma, beta, mean, variance = (
            numpy_helper.to_array(tensors[name]).astype(np.float64) for name in norm.input[1:5]
        )
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        weight = numpy_helper.to_array(tensors[conv.input[1]])
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        bias = np.zeros(len(scale))
        if len(conv.input) > 2:
            bias = numpy_helper.to_array(tensors[conv.input[2]]).astype(np.float64)
        shifted = (bias - mean) * scale + beta
        name = f"{norm.name}.bias"
        graph.initializer.append(numpy_helper.from_array(shifted.astype(np.float32), name))
        tensors[conv.input[1]].CopyFrom(
            numpy_helper.from_array(scaled.astype(np.float32), conv.input[1])
        )
        conv.input[:] = [*conv.input[:2], name]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)


def _add_biases(graph: onnx.GraphProto) -> None:
    """Give convolutions a bias where they have none: there is none to correct otherwise."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in tensors:
            outputs = tensors[node.input[1]].dims[0]
            name = f"{node.name}.bias"
            graph.initializer.append(numpy_helper.from_array(np.zeros(outputs, np.float32), name))
            node.input.append(name)


def _means_to_pools(graph: onnx.GraphProto) -> None:
    """Replace a mean over height and width by GlobalAveragePool, and a Flatten if need be."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    for position, node in reversed(list(enumerate(nodes))):
        if node.op_type != "ReduceMean":
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = attributes.get("axes")
        if len(node.input) > 1 and node.input[1] in tensors:
            axes = numpy_helper.to_array(tensors[node.input[1]]).tolist()
        if sorted(int(axis) % 4 for axis in axes or ()) != [2, 3]:
            continue
        output = node.output[0]
        if attributes.get("keepdims", 1):
            new = [helper.make_node("GlobalAveragePool", [node.input[0]], [output], node.name)]
        else:
            pooled = f"{output}.pooled"
            new = [
                helper.make_node(
                    "GlobalAveragePool", [node.input[0]], [pooled], f"{node.name}.pool"
                ),
                helper.make_node("Flatten", [pooled], [output], node.name),
            ]
        nodes[position : position + 1] = new
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)


def carry_metadata(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Copy what an exported file of ours says about itself."""
    texts = {entry.key: entry.value for entry in source.metadata_props}
    kept = {METADATA_KEY: texts[METADATA_KEY]} if METADATA_KEY in texts else {}
    target.ClearField("metadata_props")
    helper.set_model_props(target, kept)
