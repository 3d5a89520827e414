"""What quantization costs: the noise at every layer, and what each layer does alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from tvm_mobilenet.inputs import Inputs
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.quantize.graph import FloatGraph, Layer
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.ranges import Ranges
from tvm_mobilenet.quantize.sessions import Probe
from tvm_mobilenet.quantize.writer import write_qdq

__all__ = [
    "Costs",
    "choose_float_layers",
    "layer_costs",
    "layer_noise",
    "output_noise",
    "solo_noise",
]

_FLOAT_COST = 4
"""Time of a float32 multiply-add in int8 ones: registers hold a quarter as many."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a layer weighs."""

    macs: int
    weights: int
    """Number of weights; bytes in int8, four times as many in float32."""


def layer_noise(
    graph: FloatGraph, quantized: onnx.ModelProto, inputs: Sequence[Inputs]
) -> dict[str, float]:
    """Return the signal-to-noise ratio of each layer's output against float, in dB.

    The noise is all that has gathered up to there.
    """
    compared = {}
    for layer in graph.layers:
        tensors = _written_as(graph, quantized, layer)
        if tensors is not None:
            compared[layer.name] = tensors
    ours, theirs = ([pair[i] for pair in compared.values()] for i in (0, 1))
    noise = _noise(
        Probe(graph.model, ours), Probe(quantized, theirs), list(compared.values()), inputs
    )
    return dict(zip(compared, noise, strict=True))


def _written_as(
    graph: FloatGraph, quantized: onnx.ModelProto, layer: Layer
) -> tuple[str, str] | None:
    """Return a layer's result, its activation included, in the float and the quantized graph."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in quantized.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    produced = {name for node in quantized.graph.node for name in node.output}
    ends = [n.output[0] for n in graph.readers.get(layer.y, []) if graph.bounds(n) is not None]
    for tensor in (*ends[:1], layer.y):
        if tensor not in produced:
            continue
        # Through quantize and dequantize, where they are what follows.
        at = tensor
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            following = [n for n in readers.get(at, []) if n.op_type == operator]
            if following:
                at = following[0].output[0]
        return tensor, at
    return None


def output_noise(graph: FloatGraph, quantized: onnx.ModelProto, inputs: Sequence[Inputs]) -> float:
    """Return the signal-to-noise ratio of the model's outputs, in dB."""
    names = sorted(graph.outputs)
    signal = error = 0.0
    for expected, found in zip(
        Probe(graph.model, names).over(inputs), Probe(quantized, names).over(inputs), strict=True
    ):
        for name in names:
            signal += _power(expected[name])
            error += _power(found[name] - expected[name])
    return _decibel(signal, error)


def solo_noise(
    graph: FloatGraph,
    ranges: Ranges,
    inputs: Sequence[Inputs],
    progress: Progress,
) -> dict[str, float]:
    """Return the outputs' signal-to-noise ratio in dB with one layer quantized, for each layer."""
    outputs = sorted(graph.outputs)
    reference = [Probe(graph.model, outputs).run(one) for one in inputs]
    result = {}
    progress.start("quantizing each layer alone", len(graph.layers))
    for layer in graph.layers:
        alone = write_qdq(graph, ranges, only=_with_activation(graph, layer))
        probe = Probe(alone, outputs)
        signal = error = 0.0
        for one, expected in zip(inputs, reference, strict=True):
            found = probe.run(one)
            for name in outputs:
                signal += _power(expected[name])
                error += _power(found[name] - expected[name])
        result[layer.name] = _decibel(signal, error)
        progress.advance()
    progress.done()
    return result


def _with_activation(graph: FloatGraph, layer: Layer) -> list[str]:
    readers = graph.readers.get(layer.y, [])
    return [layer.name, *(node.name for node in readers if graph.bounds(node) is not None)]


def _noise(
    reference: Probe, other: Probe, pairs: Sequence[tuple[str, str]], inputs: Sequence[Inputs]
) -> list[float]:
    signal, error = [0.0] * len(pairs), [0.0] * len(pairs)
    for expected, found in zip(reference.over(inputs), other.over(inputs), strict=True):
        for index, (ours, theirs) in enumerate(pairs):
            signal[index] += _power(expected[ours])
            error[index] += _power(found[theirs] - expected[ours])
    return [_decibel(s, e) for s, e in zip(signal, error, strict=True)]


def _power(array: npt.NDArray[np.float32]) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _decibel(signal: float, error: float) -> float:
    if error == 0:
        return np.inf
    return 10 * float(np.log10(max(signal, 1e-300) / error))


def layer_costs(graph: FloatGraph) -> dict[str, Costs]:
    """Return multiply-adds and weights of every layer."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.model.graph.value_info, *graph.model.graph.output)
    }
    costs = {}
    for layer in graph.layers:
        weight = graph.weights(layer.weight)
        shape = shapes.get(layer.y, [])
        if len(shape) == 4:
            uses = int(np.prod(shape)) // max(weight.shape[0], 1)
        else:
            uses = int(np.prod(shape[:-1])) if shape else 1
        costs[layer.name] = Costs(int(weight.size) * uses, int(weight.size))
    return costs


def choose_float_layers(
    solo: Mapping[str, float], costs: Mapping[str, Costs], options: QuantizeOptions
) -> Collection[str]:
    """Choose the layers that gain most in float32 for what they cost, within the budgets.

    Candidates are those whose noise is above the mean of all; the one that removes most noise for
    its share of both budgets comes first.
    """
    noise = {name: 10 ** (-value / 10) for name, value in solo.items()}
    mean = sum(noise.values()) / max(len(noise), 1)
    all_macs = sum(cost.macs for cost in costs.values())
    all_weights = sum(cost.weights for cost in costs.values())

    def growth(name: str) -> tuple[float, float]:
        cost = costs[name]
        return (
            3 * cost.weights / max(all_weights, 1),
            (_FLOAT_COST - 1) * cost.macs / max(all_macs, 1),
        )

    worst = [name for name in noise if noise[name] > mean]
    worst.sort(key=lambda name: noise[name] / (sum(growth(name)) + 1e-3), reverse=True)
    chosen: list[str] = []
    size = latency = 0.0
    for name in worst:
        more_size, more_latency = growth(name)
        if size + more_size <= options.size_budget and (
            latency + more_latency <= options.latency_budget
        ):
            chosen.append(name)
            size, latency = size + more_size, latency + more_latency
    return chosen
