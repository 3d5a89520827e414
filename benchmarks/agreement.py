"""Whether an engine computes what the ONNX file says: asked before anything is timed.

The reference is ONNX Runtime with its graph optimisations off, that is, the file operator by
operator: of a QDQ file every integer operator in float32 between dequantizing and quantizing, exact
to the rounding, on every processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.onnx_graph import OnnxGraph
from benchmarks.qdq import read_qdq
from tvm_mobilenet.detection.onnx_function import OUTPUTS
from tvm_mobilenet.detection.outputs import aligned

__all__ = ["DTYPES", "Agreement", "Reference", "compute_reference"]

DTYPES = ("float32", "int8")

FLOAT32_LIMIT = 1e-4
"""Relative L2 distance. Two float32 engines that add in another order differ by about 1e-6 after 28
layers; a wrong padding or a bfloat16 kernel by more than 1e-3."""

ROUNDING_STEPS = 2.5
"""Mean distance, in quantization steps of the output, that rounding alone explains: an engine that
rounds in every layer otherwise, and is exact between, was seen at 0.2 (V1) to 2.1 (V3-Large)."""

GROSS_STEPS = 8.0
"""Mean distance beyond which an int8 model is another model. Between the two lies what integer
kernels do on an x86 processor without VNNI: they add two 8-bit products in 16 bits, and saturate.
ONNX Runtime and OpenVINO were seen at 3 to 6 steps there. They are timed, and it is said."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one engine's outputs are from the reference."""

    relative_l2: float
    steps_mean: float | None = None
    """int8: mean distance in steps of the output's scale."""
    steps_max: float | None = None
    top1: bool | None = None
    """int8: whether the largest output is the reference's."""
    failure: str = ""
    """Why it must not be timed."""
    remark: str = ""
    """What a reader should know although it is timed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the file computes from one set of inputs."""

    outputs: tuple[np.ndarray, ...]
    steps: tuple[float, ...] | None
    """Scale of each output; None for a float32 file."""
    names: tuple[str, ...] = ()
    """Of the outputs."""

    def judge(self, outputs: Sequence[np.ndarray]) -> Agreement:
        """Compare an engine's outputs with the reference."""
        shapes = [o.shape for o in outputs]
        if shapes != [r.shape for r in self.outputs]:
            return Agreement(np.inf, failure=f"outputs have shapes {shapes}")
        outputs, expected = self._in_one_order(outputs)
        distance = max(map(_relative_l2, outputs, expected))
        if self.steps is None:
            failure = "" if distance <= FLOAT32_LIMIT else f"relative L2 {distance:.1e}"
            return Agreement(distance, failure=failure and f"output differs: {failure}")
        return self._judge_steps(outputs, distance)

    def _in_one_order(
        self, outputs: Sequence[np.ndarray]
    ) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """Bring the detections of a detector into one order; rounding may swap two of them."""
        if self.names != OUTPUTS:
            return outputs, self.outputs
        theirs = dict(zip(self.names, self.outputs, strict=True))
        ours = {n: o.astype(theirs[n].dtype) for n, o in zip(self.names, outputs, strict=True)}
        found, expected = aligned(ours, theirs, FLOAT32_LIMIT)
        return [found[name] for name in OUTPUTS], [expected[name] for name in OUTPUTS]

    def _judge_steps(self, outputs: Sequence[np.ndarray], distance: float) -> Agreement:
        assert self.steps is not None
        gaps = [
            np.abs(o.astype(np.float64) - r) / step
            for o, r, step in zip(outputs, self.outputs, self.steps, strict=True)
        ]
        mean, largest = max(float(g.mean()) for g in gaps), max(float(g.max()) for g in gaps)
        top1 = all(o.argmax() == r.argmax() for o, r in zip(outputs, self.outputs, strict=True))
        said = f"{mean:.1f} quantization steps off on average (at most {largest:.0f})"
        if not mean <= GROSS_STEPS:
            failure = f"output is {said}, allowed are {GROSS_STEPS:.0f}"
            return Agreement(distance, mean, largest, top1, failure=failure)
        remarks = []
        if mean > ROUNDING_STEPS:
            remarks.append(f"{said}, more than rounding explains ({ROUNDING_STEPS})")
        if not top1:
            remarks.append("another class comes first")
        return Agreement(distance, mean, largest, top1, remark=" and ".join(remarks))


def compute_reference(graph: OnnxGraph, inputs: Mapping[str, np.ndarray], dtype: str) -> Reference:
    """Compute the file operator by operator.

    Raises:
        EngineUnavailableError: ONNX Runtime is missing or refuses the file.
    """
    try:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
        outputs = tuple(np.asarray(o) for o in session.run(None, dict(inputs)))
    except Exception as err:  # onnxruntime raises classes of its own for every fault
        raise EngineUnavailableError(f"onnxruntime, the reference of parity: {err}") from err
    steps = tuple(_steps(graph, outputs)) if dtype == "int8" else None
    return Reference(outputs, steps, tuple(spec.name for spec in graph.outputs))


def _steps(graph: OnnxGraph, outputs: Sequence[np.ndarray]) -> list[float]:
    """Return the scale that each output was last quantized with, or a 255th of its range."""
    schemes = read_qdq(graph).schemes
    behind = {n.output[0]: n.input[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    steps = []
    for spec, output in zip(graph.outputs, outputs, strict=True):
        scheme = schemes.get(behind.get(spec.name, ""))
        steps.append(scheme.scale[0] if scheme else float(np.ptp(output)) / 255)
    return steps


def _relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    exact = reference.astype(np.float64)
    return float(np.linalg.norm(value - exact) / max(float(np.linalg.norm(exact)), 1e-30))
