"""The range of every activation, by ONNX Runtime's calibrators and by least squared error."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tvm_mobilenet.inputs import Inputs
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.quantize.graph import FloatGraph
from tvm_mobilenet.quantize.options import QuantizeOptions

__all__ = ["Ranges", "activation_ranges", "least_error_range"]

Ranges = dict[str, tuple[float, float]]
"""By tensor, the lowest and highest value; 0 lies between them."""

_CHUNK_BYTES = 64 << 20
"""Intermediate tensors that ONNX Runtime's calibrator may hold at once."""
_CANDIDATES = 64
_STEPS = 255


def activation_ranges(
    graph: FloatGraph, inputs: Sequence[Inputs], options: QuantizeOptions, progress: Progress
) -> Ranges:
    """Return the range of every float tensor that the graph computes, and of its inputs.

    What a ReLU or a Clip bounds is never given a range beyond its bounds, so that the integers'
    own ends do the clipping.
    """
    calibrator = _calibrator(graph.model, options)
    chunk = max(1, _CHUNK_BYTES // max(1, _bytes_of(graph.model)))
    progress.start("calibrating", len(inputs))
    with _quiet():
        for start in range(0, len(inputs), chunk):
            part = list(inputs[start : start + chunk])
            calibrator.collect_data(_Reader(part))
            progress.advance(len(part))
        if options.method == "mse":
            ranges = {
                name: least_error_range(*found[:2])
                for name, found in calibrator.collector.histogram_dict.items()
            }
        else:
            ranges = {
                name: (float(np.min(data.range_value[0])), float(np.max(data.range_value[1])))
                for name, data in calibrator.compute_data().items()
            }
    progress.done()
    return _within_bounds(graph, ranges)


def _within_bounds(graph: FloatGraph, ranges: Ranges) -> Ranges:
    result = {}
    for name, (low, high) in ranges.items():
        producer = graph.producers.get(name)
        bounds = graph.bounds(producer) if producer is not None else None
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
        low, high = min(low, 0.0), max(high, 0.0)
        result[name] = (low, high) if high > low else (0.0, 1.0)
    return result


def least_error_range(counts: npt.NDArray[Any], edges: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the range whose 255 steps give a histogram's values the least mean squared error.

    Within the range the error is that of rounding, a twelfth of a squared step; beyond it, the
    distance to its end. Both ends are shrunk together, and then each alone.
    """
    centres = (edges[:-1] + edges[1:]) / 2
    weights = counts.astype(np.float64)
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    if high <= low or not weights.any():
        return low, high

    def error(ends: tuple[float, float]) -> float:
        step = (ends[1] - ends[0]) / _STEPS
        beyond = np.maximum(centres - ends[1], 0) + np.maximum(ends[0] - centres, 0)
        return float((weights * (beyond**2 + np.where(beyond > 0, 0, step**2 / 12))).sum())

    shares = np.linspace(1, 1 / _CANDIDATES, _CANDIDATES)
    best = min(((low * s, high * s) for s in shares), key=error)
    if low < 0 < high:
        best = min(((low * s, best[1]) for s in shares), key=error)
        best = min(((best[0], high * s) for s in shares), key=error)
    return best


class _Reader:
    """Inputs as ONNX Runtime's calibrators ask for them."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Inputs | None:
        """Return the next input, None at the end."""
        return next(self._inputs, None)


def _calibrator(model: onnx.ModelProto, options: QuantizeOptions) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
        "mse": CalibrationMethod.Percentile,  # for its histograms alone
    }
    extra: dict[str, Any] = {"symmetric": False}
    if options.method != "minmax":
        extra |= {"num_bins": 2048 if options.method != "entropy" else 512}
    if options.method == "percentile":
        extra |= {"percentile": options.percentile}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return create_calibrator(
            path,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[options.method],
            extra_options=extra,
        )


def _bytes_of(model: onnx.ModelProto) -> int:
    total = 0
    for value in model.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        total += 4 * int(np.prod(dims)) if all(dims) else 0
    return total


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's calibrators from printing what they do."""
    import contextlib
    import io

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        root.setLevel(level)
