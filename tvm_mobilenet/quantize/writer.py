"""Float graph and ranges to QDQ ONNX, by ONNX Runtime's writer, and the bias corrected in it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from tvm_mobilenet.inputs import Inputs
from tvm_mobilenet.quantize.graph import FloatGraph, Layer
from tvm_mobilenet.quantize.ranges import Ranges
from tvm_mobilenet.quantize.sessions import Probe, channel_means

__all__ = ["OPERATORS", "correct_biases", "write_qdq"]

Array = npt.NDArray[np.float32]

OPERATORS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Quantized with their inputs and outputs. Others, hard-swish and hard-sigmoid among them, are
computed in float32 from dequantized inputs, and what reads their results quantizes these."""


def write_qdq(
    graph: FloatGraph,
    ranges: Ranges,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the model with int8 weights, a scale for each output, and uint8 activations.

    Args:
        graph: what to quantize.
        ranges: of its activations.
        only: names of the nodes to quantize; None for all that can be.
        without: names of layers to leave in float32, with their activations.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    excluded = list(without) + _unfollowed(graph, without)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quantizer = QDQQuantizer(
            model,
            True,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            list(only) if only is not None else [],
            excluded,
            list(OPERATORS),
            {"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
    finally:
        logging.root.setLevel(level)
    quantizer.model.topological_sort()
    result = quantizer.model.model
    result.producer_name = "tvm-mobilenet"
    return onnx.shape_inference.infer_shapes(result)


def _unfollowed(graph: FloatGraph, without: Collection[str]) -> list[str]:
    """Return the activations behind float layers: they stay in float32 with their layer."""
    names = []
    for layer in graph.layers:
        if layer.name in without:
            names += [n.name for n in graph.readers.get(layer.y, []) if graph.bounds(n)]
    return names


def correct_biases(graph: FloatGraph, quantized: onnx.ModelProto, inputs: Sequence[Inputs]) -> int:
    """Take the mean error of rounded weights out of the biases of a QDQ model, in place.

    The error of an output is (rounded weights - weights) times its inputs; its mean over the
    calibration's inputs needs their means for each channel alone. Returns how many biases changed.

    Reference: Nagel et al. 2019 (arXiv:1906.04721), section 4.2 and appendix D.
    """
    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    producers = {name: node for node in quantized.graph.node for name in node.output}
    nodes = {node.name: node for node in quantized.graph.node}
    layers = [layer for layer in graph.layers if layer.bias is not None]
    if not layers:
        return 0
    means = channel_means(Probe(graph.model, [layer.x for layer in layers]), inputs)
    changed = 0
    for layer in layers:
        node = nodes.get(layer.name)
        weight_dq = producers.get(node.input[1]) if node is not None else None
        bias_dq = producers.get(node.input[2]) if node is not None and weight_dq else None
        if weight_dq is None or bias_dq is None or bias_dq.input[0] not in tensors:
            continue
        rounded = _dequantized(tensors, weight_dq, layer.out_axis)
        error = _output_error(layer, rounded - graph.weights(layer.weight), means[layer.x])
        scale = numpy_helper.to_array(tensors[bias_dq.input[1]]).astype(np.float64)
        bias = numpy_helper.to_array(tensors[bias_dq.input[0]]).astype(np.int64)
        steps = np.rint(error / scale).astype(np.int64)
        new = np.clip(bias - steps, -(2**31) + 1, 2**31 - 1).astype(np.int32)
        tensors[bias_dq.input[0]].CopyFrom(numpy_helper.from_array(new, bias_dq.input[0]))
        changed += bool(steps.any())
    return changed


def _dequantized(
    tensors: dict[str, onnx.TensorProto], node: onnx.NodeProto, out_axis: int
) -> npt.NDArray[np.float64]:
    values = numpy_helper.to_array(tensors[node.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float64).reshape(-1)
    shape = [1] * values.ndim
    shape[out_axis] = -1
    return np.asarray(values * scale.reshape(shape), np.float64)


def _output_error(
    layer: Layer, difference: npt.NDArray[np.float64], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the mean error for each output (O,), given the inputs' means (C,)."""
    if layer.operator == "Conv":
        taps = difference.reshape(*difference.shape[:2], -1).sum(axis=2)
        per_group = mean.reshape(layer.groups, -1)
        outputs = taps.reshape(layer.groups, -1, taps.shape[1])
        return np.asarray(np.einsum("goi,gi->go", outputs, per_group).reshape(-1), np.float64)
    matrix = difference if layer.out_axis == 0 else difference.T
    return np.asarray(matrix @ mean, np.float64)
