"""Where do two implementations part? Every layer's output against ONNX Runtime's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.inputs import in_onnx_layout
from tvm_mobilenet.protocols import Executor
from tvm_mobilenet.records import LayerRecord
from tvm_mobilenet.verify.engines import onnx_file, onnx_session
from tvm_mobilenet.verify.parity import (
    THRESHOLDS,
    ParityStatistics,
    compare_outputs,
    half_line,
    threshold_for,
)
from tvm_mobilenet.verify.quantized import IntegerReference, read_float_model

__all__ = ["DriftReport", "LayerDrift", "compare_layers"]

Array = npt.NDArray[Any]

_INT8 = THRESHOLDS["int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """One layer's output against the same tensor in ONNX Runtime."""

    index: int
    kernel: str
    family: str
    tensor: str | None
    """None where the layer computes no tensor of the ONNX graph."""
    relative_l2: float | None
    """Accumulated from the input to here; None where there is nothing to compare with."""
    max_abs_error: float | None
    growth: float | None
    """`relative_l2` over that of the layer compared before: what this layer added."""
    exceeds: bool
    """Whether `relative_l2` is above the threshold, or `steps` above 1."""
    steps: int | None = None
    """Of a quantized model: the largest difference of an integer, where the layer reads ONNX
    Runtime's integers (on a board: its own)."""
    float_snr_db: float | None = None
    """Of a quantized model: ONNX Runtime's integers against the float model, signal over noise."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        names = (
            "index",
            "kernel",
            "family",
            "tensor",
            "relative_l2",
            "max_abs_error",
            "growth",
            "steps",
            "float_snr_db",
        )
        values = {name: getattr(self, name) for name in names}
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        return {**finite, "exceeds": self.exceeds}


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Every layer of one inference, in order."""

    layers: tuple[LayerDrift, ...]
    threshold: float
    """Relative L2 above which a layer counts as departed."""
    is_integer: bool = False
    """Whether the model is a quantized one: a layer of integers has departed beyond one step."""

    @property
    def first_departed(self) -> LayerDrift | None:
        """The first layer above the threshold, or None."""
        return next((layer for layer in self.layers if layer.exceeds), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        first = self.first_departed
        return {
            "threshold": self.threshold,
            "first_departed": first.index if first else None,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def compare_layers(
    artifact: Artifact,
    executor: Executor,
    inputs: Mapping[str, Array],
    float_onnx: Path | None = None,
) -> DriftReport:
    """Run one input through both and compare every tensor that both compute.

    ONNX Runtime gets a copy of the graph with those tensors among the outputs, its own graph
    optimisations off, so that it computes each of them as the graph says. Of a quantized model its
    integers are compared, layer by layer, and those with the float model: the one in `float_onnx`,
    or the same one without rounding.
    """
    if artifact.manifest.dtype == "int8":
        return _compare_integers(artifact, executor, inputs, float_onnx)
    layers = artifact.manifest.layers
    found = executor.layer_outputs(inputs)
    expected = _tensors_of(artifact, [layer.tensor for layer in layers if layer.tensor], inputs)
    rows: list[LayerDrift] = []
    before = 0.0
    judged_as = half_line(artifact.manifest.dtype, artifact.manifest.accumulate)
    for layer, ours in zip(layers, found, strict=True):
        theirs = expected.get(layer.tensor or "")
        statistics = _compare(layer, theirs, ours, judged_as) if theirs is not None else None
        rows.append(_row(layer, statistics, before))
        if statistics is not None:
            before = statistics.relative_l2
    return DriftReport(tuple(rows), threshold_for(judged_as or "float32").relative_l2)


def _compare_integers(
    artifact: Artifact,
    executor: Executor,
    inputs: Mapping[str, Array],
    float_onnx: Path | None,
) -> DriftReport:
    import onnx

    manifest = artifact.manifest
    feeds = {info.name: in_onnx_layout(inputs[info.name], info.layout) for info in manifest.inputs}
    reference = IntegerReference(
        onnx.load(str(onnx_file(artifact))),
        [layer.tensor for layer in manifest.layers if layer.tensor],
        feeds,
        read_float_model(float_onnx) if float_onnx is not None else None,
    )

    def replace(index: int, ours: Array) -> Array | None:
        layer = manifest.layers[index]
        return reference.in_place_of(layer.tensor or "", ours, layer.layout)

    rows = []
    for layer, ours in zip(manifest.layers, executor.layer_outputs(inputs, replace), strict=True):
        name = layer.tensor or ""
        steps = reference.steps(name, ours, layer.layout)
        theirs = reference.values.get(name)
        statistics = _compare(layer, theirs, ours) if theirs is not None and steps is None else None
        exceeds = statistics is not None and not statistics.relative_l2 <= _INT8.relative_l2
        rows.append(
            LayerDrift(
                index=layer.index,
                kernel=layer.kernel,
                family=layer.family,
                tensor=layer.tensor,
                relative_l2=statistics.relative_l2 if statistics else None,
                max_abs_error=statistics.max_abs_error if statistics else None,
                growth=None,
                exceeds=exceeds or (steps is not None and steps > 1),
                steps=steps,
                float_snr_db=reference.signal_to_noise_db(name),
            )
        )
    return DriftReport(tuple(rows), _INT8.relative_l2, is_integer=True)


def _compare(
    layer: LayerRecord, theirs: Array, ours: Array, judged_as: str | None = None
) -> ParityStatistics:
    ours = in_onnx_layout(ours, layer.layout)
    # A layer may write the tensor in another shape: (N, C) where ONNX keeps (N, C, 1, 1).
    return compare_outputs(
        "onnxruntime",
        layer.tensor or "",
        [theirs],
        [ours.reshape(theirs.shape)],
        classes=False,
        judged_as=judged_as,
    )


def _row(layer: LayerRecord, statistics: ParityStatistics | None, before: float) -> LayerDrift:
    return LayerDrift(
        index=layer.index,
        kernel=layer.kernel,
        family=layer.family,
        tensor=layer.tensor,
        relative_l2=statistics.relative_l2 if statistics else None,
        max_abs_error=statistics.max_abs_error if statistics else None,
        growth=statistics.relative_l2 / before if statistics and before > 0 else None,
        exceeds=statistics is not None and not statistics.is_within,
    )


def _tensors_of(
    artifact: Artifact, names: Sequence[str], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    import onnx

    model = onnx.load(str(onnx_file(artifact)))
    present = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name in present]
    for name in wanted:
        if name not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnx_session(model.SerializeToString(), optimize=False)
    feeds = {
        info.name: in_onnx_layout(inputs[info.name], info.layout)
        for info in artifact.manifest.inputs
    }
    return dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}
