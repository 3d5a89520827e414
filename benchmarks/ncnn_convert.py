"""Write ncnn's `.param` and `.bin` straight from an ONNX graph of a convolutional network.

ncnn's wheel has no converter, and a comparison should not need a second package to make one. The
text format and the parameter numbers are those of ncnn's own documentation
(`docs/developer-guide/param-and-model-file-structure.md`, `operation-param-weight-table.md`).

An activation is folded into the convolution that feeds it, as ncnn's own optimiser does, so that
ncnn is measured at its best. An operator without an entry in `_HANDLERS` is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks.onnx_graph import GraphError, OnnxGraph, attributes

__all__ = ["NcnnModel", "convert"]

_MAGIC = 7767517
_FLOAT32_FLAG = np.zeros(1, np.uint32).tobytes()
"""Stands before every weight that could also be stored in another dtype: 0 is float32."""

Params = dict[int, int | float | list[float]]


@dataclass(frozen=True, slots=True)
class NcnnModel:
    """A network in ncnn's format."""

    param: str
    weights: bytes
    inputs: dict[str, str]
    """Blob of each ONNX input."""
    outputs: dict[str, str]
    """Blob of each ONNX output."""

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write `stem.param` and `stem.bin`, and return both paths."""
        param, weights = stem.with_suffix(".param"), stem.with_suffix(".bin")
        param.write_text(self.param, encoding="ascii")
        weights.write_bytes(self.weights)
        return param, weights


@dataclass(slots=True)
class _Layer:
    kind: str
    inputs: list[str]
    outputs: list[str]
    params: Params = field(default_factory=dict)
    weights: bytes = b""

    def line(self, index: int) -> str:
        words = [f"{self.kind:<20} {self.kind.lower()}_{index:<4}"]
        words += [str(len(self.inputs)), str(len(self.outputs)), *self.inputs, *self.outputs]
        return " ".join([*words, *(_pair(k, v) for k, v in sorted(self.params.items()))])


def _pair(key: int, value: int | float | list[float]) -> str:
    if isinstance(value, list):
        return f"{-23300 - key}={len(value)},{','.join(_number(v) for v in value)}"
    return f"{key}={_number(value)}"


def _number(value: int | float) -> str:
    # A float must look like one: ncnn tells the two apart by the point or the exponent.
    return str(value) if isinstance(value, int) else f"{value:.9e}"


class _Writer:
    """Collects layers while the ONNX nodes are walked in order."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.layers: list[_Layer] = []
        self.blob_of: dict[str, str] = {}
        self.flat: set[str] = set()
        """Blobs of one dimension, the channels: what global pools give, and what follows."""
        self.uses = Counter(name for node in graph.nodes for name in node.input)
        self.uses.update(s.name for s in graph.outputs)

    def constant(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        """Return the constant at an input of `node`, or None where the input is left out."""
        if position >= len(node.input) or not node.input[position]:
            return None
        try:
            return self.graph.constants[node.input[position]]
        except KeyError:
            raise GraphError(
                f"ncnn: {_where(node)} computes {node.input[position]!r}, which must be constant"
            ) from None

    def add(self, node: onnx.NodeProto, kind: str, params: Params, weights: bytes = b"") -> None:
        """Append a layer that computes the node's only output from its variable inputs."""
        inputs = [self.blob_of[n] for n in node.input if n and n not in self.graph.constants]
        blob = self.blob_of[node.output[0]] = f"b{len(self.layers)}"
        self.layers.append(_Layer(kind, inputs, [blob], params, weights))
        if inputs and self.flat.issuperset(inputs):
            self.flat.add(blob)

    def alias(self, node: onnx.NodeProto) -> None:
        """Let the node's output be its input."""
        self.blob_of[node.output[0]] = self.blob_of[node.input[0]]
        # One use of the input is gone, those of the output come instead.
        self.uses[node.input[0]] += self.uses[node.output[0]] - 1

    def fold_activation(self, node: onnx.NodeProto, kind: int, params: list[float]) -> bool:
        """Fold an activation into the layer that feeds it; say whether that could be done."""
        blob = self.blob_of[node.input[0]]
        last = self.layers[-1]
        foldable = {"Convolution", "ConvolutionDepthWise", "InnerProduct"}
        if (
            self.uses[node.input[0]] != 1
            or last.outputs != [blob]
            or last.kind not in foldable
            or 9 in last.params
        ):
            return False
        last.params[9] = kind
        if params:
            last.params[10] = params
        self.alias(node)
        return True


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or node.output[0]!r}"


def _activation(node: onnx.NodeProto, w: _Writer) -> None:
    # Activation numbers: 1 ReLU, 3 clip, 4 sigmoid, 6 hard-swish.
    if node.op_type == "Relu":
        if not w.fold_activation(node, 1, []):
            w.add(node, "ReLU", {})
    elif node.op_type == "Sigmoid":
        if not w.fold_activation(node, 4, []):
            w.add(node, "Sigmoid", {})
    elif node.op_type == "HardSwish":
        if not w.fold_activation(node, 6, [1 / 6, 0.5]):
            w.add(node, "HardSwish", {0: 1 / 6, 1: 0.5})
    else:
        a = attributes(node)
        w.add(node, "HardSigmoid", {0: float(a.get("alpha", 0.2)), 1: float(a.get("beta", 0.5))})


def _clip(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    low, high = w.constant(node, 1), w.constant(node, 2)
    bounds = [
        float(a.get("min", np.finfo(np.float32).min)) if low is None else low.item(),
        float(a.get("max", np.finfo(np.float32).max)) if high is None else high.item(),
    ]
    if not w.fold_activation(node, 3, bounds):
        w.add(node, "Clip", {0: bounds[0], 1: bounds[1]})


def _window(node: onnx.NodeProto, kernel: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return strides (h, w) and padding (top, left, bottom, right)."""
    a = attributes(node)
    auto = a.get("auto_pad", b"NOTSET")
    strides = list(a.get("strides", [1, 1]))
    if len(kernel) != 2 or auto not in {b"NOTSET", b"VALID", b"SAME_UPPER"}:
        raise GraphError(f"ncnn: {_where(node)} has auto_pad {auto!r} or is not 2-D")
    pads = [-233] * 4 if auto == b"SAME_UPPER" else list(a.get("pads", [0] * 4))
    return strides, pads


def _conv(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    weight, bias = w.constant(node, 1), w.constant(node, 2)
    assert weight is not None
    kernel = tuple(weight.shape[2:])
    if kernel == (1, 1) and w.blob_of[node.input[0]] in w.flat:
        dense: Params = {0: weight.shape[0], 1: int(bias is not None), 2: int(weight.size)}
        w.add(node, "InnerProduct", dense, _weight_bytes(weight, bias))
        return
    (stride_h, stride_w), (top, left, bottom, right) = _window(node, kernel)
    dilation_h, dilation_w = a.get("dilations", [1, 1])
    params: Params = {
        0: weight.shape[0],
        1: kernel[1],
        11: kernel[0],
        2: dilation_w,
        12: dilation_h,
        3: stride_w,
        13: stride_h,
        4: left,
        14: top,
        15: right,
        16: bottom,
        5: int(bias is not None),
        6: int(weight.size),
    }
    kind = "Convolution"
    if (group := a.get("group", 1)) > 1:
        kind, params[7] = "ConvolutionDepthWise", group
    w.add(node, kind, params, _weight_bytes(weight, bias))


def _weight_bytes(weight: np.ndarray, bias: np.ndarray | None) -> bytes:
    tail = b"" if bias is None else np.ascontiguousarray(bias, "<f4").tobytes()
    return _FLOAT32_FLAG + np.ascontiguousarray(weight, "<f4").tobytes() + tail


def _gemm(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    weight, bias = w.constant(node, 1), w.constant(node, 2)
    assert weight is not None
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise GraphError(f"ncnn: {_where(node)} has transA, alpha or beta")
    if not a.get("transB", 0):
        weight = weight.T
    params: Params = {0: weight.shape[0], 1: int(bias is not None), 2: int(weight.size)}
    w.add(node, "InnerProduct", params, _weight_bytes(weight, bias))


def _batch_norm(node: onnx.NodeProto, w: _Writer) -> None:
    # ONNX has slope, bias, mean, variance at 1 to 4; ncnn reads slope, mean, variance, bias.
    arrays = [np.ascontiguousarray(w.constant(node, i), "<f4") for i in (1, 3, 4, 2)]
    params: Params = {0: arrays[0].size, 1: float(attributes(node).get("epsilon", 1e-5))}
    w.add(node, "BatchNorm", params, b"".join(a.tobytes() for a in arrays))


def _pool(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    kernel = tuple(a["kernel_shape"])
    (stride_h, stride_w), (top, left, bottom, right) = _window(node, kernel)
    average = node.op_type == "AveragePool"
    if a.get("ceil_mode", 0) or (average and any((top, left, bottom, right))):
        raise GraphError(f"ncnn: {_where(node)} rounds up or averages over padding")
    params: Params = {0: int(average), 1: kernel[1], 11: kernel[0], 2: stride_w, 12: stride_h}
    w.add(node, "Pooling", {**params, 3: left, 13: top, 14: right, 15: bottom, 5: 1})


def _global_pool(node: onnx.NodeProto, w: _Writer) -> None:
    if node.op_type == "ReduceMean":
        listed = w.constant(node, 1)
        axes = attributes(node).get("axes") if listed is None else listed.tolist()
        if sorted(d % 4 for d in axes or []) != [2, 3]:
            raise GraphError(f"ncnn: {_where(node)} reduces axes {axes}, not the spatial ones")
    w.add(node, "Pooling", {0: 1, 4: 1})  # its result is one-dimensional, whatever ONNX says
    w.flat.add(w.blob_of[node.output[0]])


def _flatten(node: onnx.NodeProto, w: _Writer) -> None:
    shape = w.graph.shapes.get(node.output[0], ())
    if len(shape) == 4 and shape[2:] == (1, 1):
        w.alias(node)
    elif len(shape) == 2:
        w.add(node, "Flatten", {})
    else:
        raise GraphError(f"ncnn: {_where(node)} gives shape {shape}, not one row a picture")


def _binary(node: onnx.NodeProto, w: _Writer) -> None:
    kind = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3}[node.op_type]
    constant = [n for n in node.input if n in w.graph.constants]
    if not constant:
        w.add(node, "BinaryOp", {0: kind})
        return
    value = w.graph.constants[constant[0]]
    if value.size != 1 or constant[0] == node.input[0]:
        raise GraphError(f"ncnn: {_where(node)} has a constant that is no scalar on the right")
    w.add(node, "BinaryOp", {0: kind, 1: 1, 2: float(value.reshape(()))})


def _softmax(node: onnx.NodeProto, w: _Writer) -> None:
    w.add(node, "Softmax", {0: 0, 1: 1})


def _resize(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    mode = a.get("coordinate_transformation_mode", b"half_pixel")
    if a.get("mode", b"nearest") != b"linear" or mode not in {b"half_pixel", b"align_corners"}:
        raise GraphError(f"ncnn: {_where(node)} is not bilinear, or places pixels by {mode!r}")
    height, width = w.graph.shapes[node.output[0]][2:]
    w.add(node, "Interp", {0: 2, 3: height, 4: width, 6: int(mode == b"align_corners")})


def _identity(node: onnx.NodeProto, w: _Writer) -> None:
    w.alias(node)


_HANDLERS: dict[str, Callable[[onnx.NodeProto, _Writer], None]] = {
    "Add": _binary,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _binary,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _activation,
    "HardSwish": _activation,
    "Identity": _identity,
    "MaxPool": _pool,
    "Mul": _binary,
    "ReduceMean": _global_pool,
    "Relu": _activation,
    "Reshape": _flatten,
    "Resize": _resize,
    "Sigmoid": _activation,
    "Softmax": _softmax,
    "Squeeze": _flatten,
    "Sub": _binary,
}


def convert(graph: OnnxGraph) -> NcnnModel:
    """Translate a batch-1 graph into ncnn's format.

    Raises:
        GraphError: an operator or one of its attributes has no counterpart here.
    """
    w = _Writer(graph)
    for spec in graph.inputs:
        if len(spec.shape) != 4 or spec.shape[0] != 1:
            raise GraphError(f"ncnn: input {spec.name!r} is {spec.shape}, not one NCHW picture")
        blob = w.blob_of[spec.name] = f"b{len(w.layers)}"
        _, c, h, width = spec.shape
        w.layers.append(_Layer("Input", [], [blob], {0: width, 1: h, 2: c}))
    for node in graph.nodes:
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            raise GraphError(f"ncnn: no translation for {_where(node)}")
        handler(node, w)
    layers = _split_shared_blobs(w.layers)
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(_MAGIC), f"{len(layers)} {blobs}"]
    lines += [layer.line(i) for i, layer in enumerate(layers)]
    return NcnnModel(
        param="\n".join(lines) + "\n",
        weights=b"".join(layer.weights for layer in layers),
        inputs={s.name: w.blob_of[s.name] for s in graph.inputs},
        outputs={s.name: w.blob_of[s.name] for s in graph.outputs},
    )


def _split_shared_blobs(layers: list[_Layer]) -> list[_Layer]:
    """Give every reader of a blob its own copy, through a Split layer: ncnn demands it."""
    readers = Counter(blob for layer in layers for blob in layer.inputs)
    taken: Counter[str] = Counter()
    result: list[_Layer] = []
    for layer in layers:
        for i, blob in enumerate(layer.inputs):
            if readers[blob] > 1:
                layer.inputs[i] = f"{blob}_{taken[blob]}"
                taken[blob] += 1
        result.append(layer)
        for blob in layer.outputs:
            if readers[blob] > 1:
                copies = [f"{blob}_{i}" for i in range(readers[blob])]
                result.append(_Layer("Split", [blob], copies))
    return result
