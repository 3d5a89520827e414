"""Cross-layer equalization: channels that share a scale should be of a size.

Between two convolutions with a ReLU in between, channel c can be scaled by s[c] in the first and by
1 / s[c] in the second without any change of the function. Weights here have a scale for each
output, so it costs the first layer nothing; what has one scale for all channels is the activation
in between, and the input columns of the second layer, unless it is depthwise. So s balances the
sizes of these two; of depthwise layers, and of the activations alone, it fills the range.

A ReLU6 limits s: clip(s x, 0, 6) is s clip(x, 0, 6) only while neither bound is reached by more
than before. A channel that reaches 6 keeps its scale; any other may grow until it would.

Reference: Nagel et al. 2019 (arXiv:1906.04721), sections 4.1 and 4.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from tvm_mobilenet.inputs import Inputs
from tvm_mobilenet.quantize.graph import FloatGraph, Layer
from tvm_mobilenet.quantize.sessions import Probe, channel_largest

__all__ = ["Pair", "equalizable_pairs", "equalize"]

Array = npt.NDArray[np.float32]

_ROUNDS = 2
_LARGEST = 64.0
"""Of a single factor: beyond it a channel is as good as dead, and its weights would be rounded
with the others' noise for nothing."""
_HEADROOM = 0.9
"""Of a ReLU6's bound, for what the calibration has not seen."""


@dataclass(frozen=True)
class Pair:
    """Two layers and the bound of the activation in between, infinite for a ReLU or none."""

    first: Layer
    second: Layer
    high: float
    between: str
    """The tensor that the second reads."""


def equalizable_pairs(graph: FloatGraph) -> list[Pair]:
    """Return neighbouring convolutions with nothing but a ReLU or ReLU6 in between."""
    by_node = {layer.name: layer for layer in graph.layers}
    pairs = []
    for first in graph.layers:
        at, high = first.y, np.inf
        reader = _single_reader(graph, at)
        if first.operator == "Conv" and reader is not None:
            bounds = graph.bounds(reader)
            if bounds is not None and bounds[0] == 0:
                at, high = reader.output[0], bounds[1]
                reader = _single_reader(graph, at)
        second = by_node.get(reader.name) if reader is not None else None
        if first.operator != "Conv" or second is None or second.operator != "Conv":
            continue
        channels = graph.weights(first.weight).shape[0]
        if second.x == at and second.groups in (1, channels):
            pairs.append(Pair(first, second, high, at))
    return pairs


def _single_reader(graph: FloatGraph, tensor: str) -> onnx.NodeProto | None:
    readers = graph.readers.get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in graph.outputs else None


def equalize(graph: FloatGraph, inputs: Sequence[Inputs]) -> int:
    """Scale the channels of a graph in place; returns how many pairs of layers changed."""
    pairs = equalizable_pairs(graph)
    if not pairs:
        return 0
    names = [pair.first.y for pair in pairs]
    sizes = channel_largest(Probe(graph.model, names), inputs)
    changed = set()
    for _ in range(_ROUNDS):
        for pair in pairs:
            top, size = sizes[pair.first.y]
            factor = _factors(graph, pair, top, size)
            if np.allclose(factor, 1, rtol=0.01):
                continue
            _scale(graph, pair, factor)
            sizes[pair.first.y] = (top * factor, size * factor)
            changed.add(pair.first.name)
    return len(changed)


def _factors(graph: FloatGraph, pair: Pair, top: Array, size: Array) -> Array:
    """Return s for each channel, given the values before the activation."""
    is_bounded = pair.high != np.inf
    # What passes the activation: with a ReLU the positive part alone.
    passed = np.maximum(top, 0) if graph.readers[pair.first.y][0].name != pair.second.name else size
    passed = np.minimum(passed, pair.high)
    alive = passed > 1e-6 * max(float(passed.max(initial=0)), 1e-30)
    if not alive.any():
        return np.ones_like(passed)
    goal = float(passed.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        if pair.second.groups == 1:
            weight = np.abs(graph.weights(pair.second.weight))
            columns = weight.max(axis=tuple(i for i in range(weight.ndim) if i != 1))
            # Both sides relative to their greatest: activations, and columns of one output's scale.
            share = columns / max(float(columns.max()), 1e-30)
            factor = np.sqrt(share * goal / passed)
        else:
            factor = goal / passed
        factor = np.clip(np.where(alive, factor, 1.0), 1 / _LARGEST, _LARGEST)
        if is_bounded:
            limit = np.where(top > 0, _HEADROOM * pair.high / np.maximum(top, 1e-30), _LARGEST)
            reaches = top >= _HEADROOM * pair.high
            factor = np.where(reaches, 1.0, np.minimum(factor, limit))
    return factor.astype(np.float32)


def _scale(graph: FloatGraph, pair: Pair, factor: Array) -> None:
    first, second = pair.first, pair.second
    weight = graph.weights(first.weight)
    graph.set_weights(first.weight, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
    if first.bias is not None:
        graph.set_weights(first.bias, graph.weights(first.bias) * factor)
    weight = graph.weights(second.weight)
    if second.groups == 1:
        graph.set_weights(second.weight, weight / factor.reshape(1, -1, 1, 1))
    else:
        graph.set_weights(second.weight, weight / factor.reshape(-1, 1, 1, 1))
