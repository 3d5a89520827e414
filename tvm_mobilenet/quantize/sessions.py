"""ONNX Runtime as a measuring instrument: any tensor of a graph, on many inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tvm_mobilenet.inputs import Inputs

__all__ = ["Probe", "channel_largest", "channel_means", "with_outputs"]

Array = npt.NDArray[Any]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model whose outputs are the tensors `names`."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name: value for value in (*copy.graph.output, *copy.graph.value_info)}
    del copy.graph.output[:]
    for name in names:
        value = known.get(name)
        copy.graph.output.append(value if value is not None else onnx.ValueInfoProto(name=name))
    return copy


class Probe:
    """Some tensors of a model, computed as the graph says: no optimisation."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.names = list(dict.fromkeys(names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._session = onnxruntime.InferenceSession(
                with_outputs(model, self.names).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Compute the tensors for one input."""
        return dict(zip(self.names, self._session.run(self.names, inputs), strict=True))

    def over(self, inputs: Sequence[Inputs]) -> Iterator[dict[str, Array]]:
        """Compute the tensors for each input in turn."""
        for one in inputs:
            yield self.run(one)


def channel_axis(array: Array) -> tuple[int, ...]:
    """Return all axes but that of the channels: 1 of a feature map, else the last."""
    axis = 1 if array.ndim == 4 else array.ndim - 1
    return tuple(index for index in range(array.ndim) if index != axis)


def channel_means(probe: Probe, inputs: Sequence[Inputs]) -> dict[str, Array]:
    """Return each tensor's mean for each channel, (C,) f64, over all inputs."""
    totals: dict[str, Array] = {}
    for found in probe.over(inputs):
        for name, array in found.items():
            mean = array.mean(axis=channel_axis(array), dtype=np.float64)
            totals[name] = totals.get(name, 0) + mean
    return {name: total / len(inputs) for name, total in totals.items()}


def channel_largest(probe: Probe, inputs: Sequence[Inputs]) -> dict[str, tuple[Array, Array]]:
    """Return each tensor's greatest value and greatest magnitude for each channel, (C,) f32."""
    found: dict[str, tuple[Array, Array]] = {}
    for outputs in probe.over(inputs):
        for name, array in outputs.items():
            axes = channel_axis(array)
            top, size = array.max(axis=axes), np.abs(array).max(axis=axes)
            if name in found:
                top, size = np.maximum(top, found[name][0]), np.maximum(size, found[name][1])
            found[name] = (top, size)
    return found
