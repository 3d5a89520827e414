"""What the comparison needs to know of an ONNX file: inputs, constants, shapes, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tvm_mobilenet.errors import OnnxFileError

__all__ = ["GraphError", "OnnxGraph", "TensorSpec", "attributes", "read_graph", "seeded_inputs"]


class GraphError(OnnxFileError):
    """The ONNX file is not one that the comparison can use."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A fixed-shape ONNX graph with every intermediate shape known."""

    path: Path
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: dict[str, np.ndarray]
    """Initializers and the values of `Constant` nodes, by tensor name."""
    shapes: dict[str, tuple[int, ...]]

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolutions and matrix products in one inference."""
        return sum(self._node_macs(node) for node in self.nodes)

    def _node_macs(self, node: onnx.NodeProto) -> int:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            return 0
        per_output = self.shapes[node.input[1]]
        out = prod(self.shapes[node.output[0]])
        if node.op_type == "Conv":  # weight (O, I/g, kH, kW)
            return out * prod(per_output[1:])
        if node.op_type == "Gemm" and attributes(node).get("transB", 0):
            return out * per_output[1]
        return out * per_output[-2]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the node's attributes as plain Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def read_graph(path: Path) -> OnnxGraph:
    """Read `path` and infer every shape in it.

    Raises:
        GraphError: the file is not ONNX, or an input or output has no fixed shape.
    """
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    except Exception as err:  # onnx raises whatever protobuf does
        raise GraphError(f"{path}: not a readable ONNX file ({err})") from err
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = attributes(node)
            tensor = value.get("value")
            constants[node.output[0]] = (
                numpy_helper.to_array(tensor)
                if tensor is not None
                else np.asarray(next(iter(value.values())))
            )
    specs = {v.name: _spec(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    inputs = tuple(specs[v.name] for v in graph.input if v.name not in constants)
    outputs = tuple(specs[v.name] for v in graph.output)
    for tensor_spec in (*inputs, *outputs):
        if any(d <= 0 for d in tensor_spec.shape):
            raise GraphError(f"{path}: {tensor_spec.name} has no fixed shape; export it with one")
    return OnnxGraph(
        path=path,
        nodes=tuple(n for n in graph.node if n.op_type != "Constant"),
        inputs=inputs,
        outputs=outputs,
        constants=constants,
        shapes={name: s.shape for name, s in specs.items()}
        | {name: tuple(a.shape) for name, a in constants.items()},
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim)
    return TensorSpec(value.name, shape, str(dtype))


def seeded_inputs(graph: OnnxGraph, seed: int = 0) -> dict[str, np.ndarray]:
    """Return one standard-normal array for each input of `graph`, the same at every call."""
    rng = np.random.default_rng(seed)
    return {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in graph.inputs}
