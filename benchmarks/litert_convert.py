"""Write a `.tflite` file straight from an ONNX graph of a convolutional network, float32 or QDQ.

LiteRT's wheel has no converter from ONNX, and those that exist bring TensorFlow or PyTorch with
them. Operators and their options are those of the schema's own comments and of LiteRT's operator
documentation.

Feature maps become NHWC, the input's too, as in every model made for LiteRT: no transpose is left.
Activations are folded into the operator that feeds them. Padding that is not LiteRT's own `SAME`
is an operator of its own, which XNNPACK folds into the convolution behind it. Of a QDQ file, an
operator whose inputs and result are all quantized becomes an integer one, with the file's scales;
any other stays in float32 between a DEQUANTIZE and a QUANTIZE. What has no translation is refused
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from benchmarks.onnx_graph import GraphError, OnnxGraph, attributes
from benchmarks.qdq import Scheme, read_qdq
from benchmarks.tflite_file import TfliteFile

__all__ = ["convert"]

_NHWC = (0, 2, 3, 1)
_GATE = Scheme((6 / 255,), -128)
"""Of 0 to 6, which is what the sum in a hard sigmoid is clipped to."""


@dataclass(frozen=True, slots=True)
class _Result:
    """Where an operator's result goes, with what lies behind the operator folded in."""

    name: str
    activation: str = "NONE"
    scheme: Scheme | None = None
    """Of the int8 tensor that the operator writes; None: it writes float32."""


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or node.output[0]!r}"


class _Writer:
    """Collects operators while the ONNX nodes are walked in order."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.qdq = read_qdq(graph)
        self.file = TfliteFile()
        self.outputs = {s.name for s in graph.outputs}
        self.done: set[int] = set()
        """Nodes that an earlier one has taken with it."""
        self.floats: dict[str, int] = {}
        self.integers: dict[str, int] = {}
        self.stored: dict[str, str] = {}
        """The integer tensor behind each dequantized one."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape as LiteRT sees it."""
        try:
            shape = self.graph.shapes[name]
        except KeyError:
            raise GraphError(f"litert: the shape of {name!r} cannot be inferred") from None
        return tuple(shape[i] for i in _NHWC) if len(shape) == 4 else shape

    def is_constant(self, name: str) -> bool:
        return name in self.graph.constants or name in self.qdq.constants

    def constant(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        """Return a constant input in float (or what it is), None where it is left out."""
        if position >= len(node.input) or not (name := node.input[position]):
            return None
        if name in self.graph.constants:
            return self.graph.constants[name]
        if name not in self.qdq.constants:
            raise GraphError(f"litert: {_where(node)} computes {name!r}, which must be constant")
        held = self.qdq.constants[name]
        shape = [1] * held.values.ndim
        if len(held.scheme.scale) > 1:
            shape[held.scheme.axis] = -1
        real = held.values.astype(np.float64) - held.scheme.zero_point
        return (real * np.reshape(held.scheme.scale, shape)).astype(np.float32)

    def float_input(self, name: str) -> int:
        """Return the number of a float32 tensor, dequantized when first asked for."""
        if name not in self.floats:
            if name not in self.stored:
                raise GraphError(f"litert: {name!r} is read before it is computed")
            self.floats[name] = self.file.tensor(name, self.shape(name))
            source = self.integers[self.stored[name]]
            self.file.operator("DEQUANTIZE", [source], [self.floats[name]], "DequantizeOptions")
        return self.floats[name]

    def input(self, name: str, result: _Result) -> int:
        """Return the number of an operator's input: int8 if its result is."""
        return self.float_input(name) if result.scheme is None else self.integers[self.stored[name]]

    def input_scheme(self, name: str) -> Scheme:
        return self.qdq.schemes[self.stored[name]]

    def result(self, node: onnx.NodeProto, *, folds: bool = True, integer: bool = True) -> _Result:
        """Say what the operator of `node` has to write; take activation and quantizer with it."""
        name, activation = node.output[0], "NONE"
        readers = self.qdq.readers.get(name, [])
        if folds and len(readers) == 1 and name not in self.outputs:
            activation = self._activation_of(readers[0])
            if activation != "NONE":
                name = readers[0].output[0]
                self.done.add(id(readers[0]))
        readers = self.qdq.readers.get(name, [])
        variables = [n for n in node.input if n and not self.is_constant(n)]
        schemes = {self.qdq.schemes.get(r.output[0]) for r in readers}
        if (
            integer
            and readers
            and all(r.op_type == "QuantizeLinear" for r in readers)
            and len(schemes) == 1
            and name not in self.outputs
            and all(n in self.stored for n in variables)
        ):
            return _Result(name, activation, schemes.pop())
        return _Result(name, activation)

    def _activation_of(self, node: onnx.NodeProto) -> str:
        if node.op_type == "Relu":
            return "RELU"
        if node.op_type == "Clip" and self.bounds(node) == (0.0, 6.0):
            return "RELU6"
        return "NONE"

    def bounds(self, node: onnx.NodeProto) -> tuple[float, float]:
        a = attributes(node)
        low, high = self.constant(node, 1), self.constant(node, 2)
        return (
            float(a.get("min", -np.inf)) if low is None else float(low.reshape(())),
            float(a.get("max", np.inf)) if high is None else float(high.reshape(())),
        )

    def write(self, result: _Result) -> int:
        """Add the tensor of an operator's result and return its number."""
        number = self.file.tensor(result.name, self.shape(result.name), result.scheme)
        if result.scheme is None:
            self.floats[result.name] = number
        else:
            for reader in self.qdq.readers[result.name]:
                self.integers[reader.output[0]] = number
                self.done.add(id(reader))
        return number

    def alias(self, name: str, of: str) -> None:
        """Let one tensor be another, in whichever forms that one exists."""
        if of in self.stored:
            self.stored[name] = self.stored[of]
        if of in self.floats:
            self.floats[name] = self.floats[of]


def _quantize(node: onnx.NodeProto, w: _Writer) -> None:
    source, target = node.input[0], node.output[0]
    scheme = w.qdq.schemes[target]
    if source in w.stored:
        if w.input_scheme(source) == scheme:
            w.integers[target] = w.integers[w.stored[source]]
            return
        number = w.integers[w.stored[source]]
    else:
        number = w.float_input(source)
    w.integers[target] = w.file.tensor(target, w.shape(target), scheme)
    w.file.operator("QUANTIZE", [number], [w.integers[target]], "QuantizeOptions")


def _dequantize(node: onnx.NodeProto, w: _Writer) -> None:
    w.stored[node.output[0]] = node.input[0]


def _window(
    node: onnx.NodeProto, w: _Writer, kernel: Sequence[int]
) -> tuple[str, list[int], list[int]]:
    """Return LiteRT's padding, strides (h, w), and what to pad before (t, l, b, r)."""
    a = attributes(node)
    auto = a.get("auto_pad", b"NOTSET")
    strides = list(a.get("strides", [1, 1]))
    if len(kernel) != 2 or auto not in {b"NOTSET", b"VALID", b"SAME_UPPER"}:
        raise GraphError(f"litert: {_where(node)} has auto_pad {auto!r} or is not 2-D")
    if auto == b"SAME_UPPER":
        return "SAME", strides, [0] * 4
    pads = list(a.get("pads", [0] * 4))
    if not any(pads):
        return "VALID", strides, pads
    sizes, dilations = w.shape(node.input[0])[1:3], a.get("dilations", [1, 1])
    same = [
        max((-(-size // stride) - 1) * stride + (k - 1) * d + 1 - size, 0)
        for size, stride, k, d in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    if pads == [same[0] // 2, same[1] // 2, same[0] - same[0] // 2, same[1] - same[1] // 2]:
        return "SAME", strides, [0] * 4
    return "VALID", strides, pads


def _padded(node: onnx.NodeProto, w: _Writer, result: _Result, pads: Sequence[int]) -> int:
    """Return the number of the operator's input with `pads` around it."""
    name = node.input[0]
    number = w.input(name, result)
    if not any(pads):
        return number
    top, left, bottom, right = pads
    n, h, width, c = w.shape(name)
    scheme = None if result.scheme is None else w.input_scheme(name)
    shape = (n, h + top + bottom, width + left + right, c)
    padded = w.file.tensor(f"{name}/padded for {node.output[0]}", shape, scheme)
    margins = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    amounts = w.file.constant(f"{node.output[0]}/pads", margins)
    w.file.operator("PAD", [number, amounts], [padded], "PadOptions")
    return padded


def _weights(
    node: onnx.NodeProto, w: _Writer, result: _Result, axes: Sequence[int]
) -> tuple[int, int]:
    """Return the numbers of weight and bias; `axes` says where the weight's ONNX axes go."""
    name = node.input[1]
    if result.scheme is None:
        weight, bias = w.constant(node, 1), w.constant(node, 2)
        assert weight is not None
        if bias is None:
            bias = np.zeros(weight.shape[axes[-1] if axes[0] == 1 else 0], np.float32)
        real = np.ascontiguousarray(weight.transpose(axes), np.float32)
        return w.file.constant(name, real), w.file.constant(f"{node.output[0]}/bias", bias)
    held = w.qdq.constants[name]
    if held.scheme.zero_point:
        raise GraphError(f"litert: {_where(node)} has weights with a zero point")
    scheme = replace(held.scheme, axis=list(axes).index(held.scheme.axis))
    steps = np.array(held.scheme.scale) * w.input_scheme(node.input[0]).scale[0]
    weight_number = w.file.constant(name, held.values.transpose(axes), scheme)
    bias_name = node.input[2] if len(node.input) > 2 else ""
    if bias_name in w.qdq.constants and w.qdq.constants[bias_name].values.dtype == np.int32:
        integers = w.qdq.constants[bias_name].values
    else:
        floats = w.constant(node, 2)
        channels = held.values.shape[held.scheme.axis if steps.size > 1 else 0]
        integers = np.zeros(channels, np.int32) if floats is None else np.rint(floats / steps)
    bias_scheme = Scheme(tuple(steps.tolist()), 0)
    bias_number = w.file.constant(
        f"{node.output[0]}/bias", integers.astype(np.int32).reshape(-1), bias_scheme
    )
    return weight_number, bias_number


def _conv(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    weight_shape = w.graph.shapes[node.input[1]]
    group, channels = a.get("group", 1), w.shape(node.input[0])[-1]
    result = w.result(node, integer=node.input[1] in w.qdq.constants)
    padding, (stride_h, stride_w), pads = _window(node, w, weight_shape[2:])
    dilation_h, dilation_w = a.get("dilations", [1, 1])
    fields = {
        "padding": getattr(w.file.schema.Padding, padding),
        "strideH": stride_h,
        "strideW": stride_w,
        "dilationHFactor": dilation_h,
        "dilationWFactor": dilation_w,
        "fusedActivationFunction": _fused(w, result),
    }
    x = _padded(node, w, result, pads)
    if group == 1:
        weight, bias = _weights(node, w, result, _NHWC)
        code, options = "CONV_2D", "Conv2DOptions"
    elif group == channels:
        weight, bias = _weights(node, w, result, (1, 2, 3, 0))
        code, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        fields["depthMultiplier"] = weight_shape[0] // channels
    else:
        raise GraphError(f"litert: {_where(node)} has {group} groups of {channels} channels")
    w.file.operator(code, [x, weight, bias], [w.write(result)], options, **fields)


def _fused(w: _Writer, result: _Result) -> int:
    return int(getattr(w.file.schema.ActivationFunctionType, result.activation))


def _gemm(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise GraphError(f"litert: {_where(node)} has transA, alpha or beta")
    result = w.result(node, integer=node.input[1] in w.qdq.constants)
    weight, bias = _weights(node, w, result, (0, 1) if a.get("transB", 0) else (1, 0))
    inputs = [w.input(node.input[0], result), weight, bias]
    fields = {"fusedActivationFunction": _fused(w, result)}
    w.file.operator("FULLY_CONNECTED", inputs, [w.write(result)], "FullyConnectedOptions", **fields)


def _operand(name: str, w: _Writer, result: _Result) -> int:
    if not w.is_constant(name):
        return w.input(name, result)
    held, scheme = w.graph.constants.get(name), None
    if held is None:
        quantized = w.qdq.constants[name]
        held, scheme = quantized.values, quantized.scheme
        if result.scheme is None:
            shape = np.array(scheme.scale)
            held, scheme = ((held - scheme.zero_point) * shape).astype(np.float32), None
    order = {4: _NHWC, 3: (1, 2, 0)}.get(held.ndim)
    return w.file.constant(f"{name}/operand", held.transpose(order) if order else held, scheme)


def _binary(node: onnx.NodeProto, w: _Writer) -> None:
    options = {"Add": "AddOptions", "Sub": "SubOptions", "Mul": "MulOptions", "Div": "DivOptions"}
    plain = any(n in w.graph.constants for n in node.input)
    result = w.result(node, integer=node.op_type != "Div" and not plain)
    inputs = [_operand(name, w, result) for name in node.input]
    fields = {"fusedActivationFunction": _fused(w, result)}
    code = node.op_type.upper()
    w.file.operator(code, inputs, [w.write(result)], options[node.op_type], **fields)


def _mean(node: onnx.NodeProto, w: _Writer) -> None:
    keep = True
    if node.op_type == "ReduceMean":
        listed = w.constant(node, 1)
        axes = attributes(node).get("axes") if listed is None else listed.tolist()
        if sorted(d % 4 for d in axes or []) != [2, 3]:
            raise GraphError(f"litert: {_where(node)} reduces axes {axes}, not the spatial ones")
        keep = bool(attributes(node).get("keepdims", 1))
    result = w.result(node, folds=False)
    x = w.input(node.input[0], result)
    numbers = w.file.constant(f"{node.output[0]}/axes", np.array([1, 2], np.int32))
    w.file.operator("MEAN", [x, numbers], [w.write(result)], "ReducerOptions", keepDims=keep)


def _pool(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    kernel = a["kernel_shape"]
    padding, (stride_h, stride_w), pads = _window(node, w, kernel)
    average = node.op_type == "AveragePool"
    if any(pads) or a.get("ceil_mode", 0) or (average and padding == "SAME"):
        raise GraphError(f"litert: {_where(node)} rounds up, or pads in a way LiteRT does not")
    result = w.result(node, integer=_keeps_scheme(node, w))
    fields = {
        "padding": getattr(w.file.schema.Padding, padding),
        "strideH": stride_h,
        "strideW": stride_w,
        "filterHeight": kernel[0],
        "filterWidth": kernel[1],
        "fusedActivationFunction": _fused(w, result),
    }
    code = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
    x = w.input(node.input[0], result)
    w.file.operator(code, [x], [w.write(result)], "Pool2DOptions", **fields)


def _keeps_scheme(node: onnx.NodeProto, w: _Writer) -> bool:
    """Say whether the result is stored as the input is, which some integer operators demand."""
    readers = w.qdq.readers.get(node.output[0], [])
    if not readers or node.input[0] not in w.stored:
        return False
    wanted = w.input_scheme(node.input[0])
    return all(w.qdq.schemes.get(r.output[0]) == wanted for r in readers)


def _reshape(node: onnx.NodeProto, w: _Writer) -> None:
    given, wanted = w.shape(node.input[0]), w.shape(node.output[0])
    if len(given) == 4 and given[1:3] != (1, 1):
        raise GraphError(f"litert: {_where(node)} flattens a map of {given[1:3]} pixels")
    result = w.result(node, folds=False, integer=_keeps_scheme(node, w))
    shape = w.file.constant(f"{node.output[0]}/shape", np.array(wanted, np.int32))
    x = w.input(node.input[0], result)
    w.file.operator(
        "RESHAPE", [x, shape], [w.write(result)], "ReshapeOptions", newShape=list(wanted)
    )


def _unary(node: onnx.NodeProto, w: _Writer) -> None:
    codes = {"Relu": "RELU", "HardSwish": "HARD_SWISH", "Sigmoid": "LOGISTIC"}
    # The integer sigmoid demands one scale of its own; HARD_SWISH is the only one with options.
    result = w.result(node, folds=False, integer=node.op_type != "Sigmoid")
    options = "HardSwishOptions" if node.op_type == "HardSwish" else ""
    x = w.input(node.input[0], result)
    w.file.operator(codes[node.op_type], [x], [w.write(result)], options)


def _clip(node: onnx.NodeProto, w: _Writer) -> None:
    code = {(0.0, 6.0): "RELU6", (0.0, 1.0): "RELU_0_TO_1"}.get(w.bounds(node))
    if code is None:
        raise GraphError(f"litert: {_where(node)} clips to {w.bounds(node)}")
    result = w.result(node, folds=False)
    w.file.operator(code, [w.input(node.input[0], result)], [w.write(result)])


def _hard_sigmoid(node: onnx.NodeProto, w: _Writer) -> None:
    """Write relu6(x + 3) / 6, the spelling of every MobileNetV3 made for LiteRT."""
    a = attributes(node)
    if abs(a.get("alpha", 0.2) - 1 / 6) > 1e-6 or a.get("beta", 0.5) != 0.5:
        raise GraphError(f"litert: {_where(node)} is not relu6(x + 3) / 6")
    result = w.result(node, folds=False)
    name = node.output[0]
    three, sixth = np.array([3], np.float32), np.array([1 / 6], np.float32)
    if result.scheme is None:
        numbers = [w.file.constant(f"{name}/3", three), w.file.constant(f"{name}/6th", sixth)]
        between = w.file.tensor(f"{name}/clipped", w.shape(name))
    else:
        largest = np.array([127], np.int8)
        numbers = [
            w.file.constant(f"{name}/{label}", largest, Scheme((value / 127,), 0))
            for label, value in (("3", 3.0), ("6th", 1 / 6))
        ]
        between = w.file.tensor(f"{name}/clipped", w.shape(name), _GATE)
    relu6 = w.file.schema.ActivationFunctionType.RELU6
    x = w.input(node.input[0], result)
    w.file.operator("ADD", [x, numbers[0]], [between], "AddOptions", fusedActivationFunction=relu6)
    w.file.operator("MUL", [between, numbers[1]], [w.write(result)], "MulOptions")


def _softmax(node: onnx.NodeProto, w: _Writer) -> None:
    if len(shape := w.shape(node.input[0])) != 2:
        raise GraphError(f"litert: {_where(node)} of shape {shape}, not one row a picture")
    result = w.result(node, folds=False, integer=False)
    x = w.input(node.input[0], result)
    w.file.operator("SOFTMAX", [x], [w.write(result)], "SoftmaxOptions", beta=1.0)


def _resize(node: onnx.NodeProto, w: _Writer) -> None:
    a = attributes(node)
    mode = a.get("coordinate_transformation_mode", b"half_pixel")
    if a.get("mode", b"nearest") != b"linear" or mode not in {b"half_pixel", b"align_corners"}:
        raise GraphError(f"litert: {_where(node)} is not bilinear, or places pixels by {mode!r}")
    result = w.result(node, folds=False, integer=_keeps_scheme(node, w))
    size = np.array(w.shape(node.output[0])[1:3], np.int32)
    numbers = [w.input(node.input[0], result), w.file.constant(f"{node.output[0]}/size", size)]
    fields = {
        "alignCorners": mode == b"align_corners",
        "halfPixelCenters": mode == b"half_pixel",
    }
    w.file.operator(
        "RESIZE_BILINEAR", numbers, [w.write(result)], "ResizeBilinearOptions", **fields
    )


def _identity(node: onnx.NodeProto, w: _Writer) -> None:
    w.alias(node.output[0], node.input[0])


_HANDLERS: dict[str, Callable[[onnx.NodeProto, _Writer], None]] = {
    "Add": _binary,
    "AveragePool": _pool,
    "Clip": _clip,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _binary,
    "Dropout": _identity,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary,
    "Identity": _identity,
    "MaxPool": _pool,
    "Mul": _binary,
    "QuantizeLinear": _quantize,
    "ReduceMean": _mean,
    "Relu": _unary,
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _unary,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Sub": _binary,
}


def convert(graph: OnnxGraph) -> bytes:
    """Translate a graph into a `.tflite` file with its inputs and outputs in the same order.

    Tensors of four dimensions are NHWC there, inputs and outputs too. Inputs and outputs of a QDQ
    file stay float32, as they are in it.

    Raises:
        GraphError: an operator or one of its attributes has no counterpart here.
    """
    w = _Writer(graph)
    for spec in graph.inputs:
        if spec.dtype != "float32":
            raise GraphError(f"litert: input {spec.name!r} is {spec.dtype}, expected is float32")
        w.floats[spec.name] = w.file.tensor(spec.name, w.shape(spec.name))
    for node in w.qdq.nodes:
        if id(node) in w.done:
            continue
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            raise GraphError(f"litert: no translation for {_where(node)}")
        handler(node, w)
    outputs = [w.float_input(spec.name) for spec in graph.outputs]
    return w.file.pack([w.floats[s.name] for s in graph.inputs], outputs)
