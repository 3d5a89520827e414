"""A model and calibration inputs to a QDQ ONNX file and a report on what it cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from tvm_mobilenet.errors import QuantizeError, SpecError, UsageError, error_context
from tvm_mobilenet.files import new_file, sha256_of
from tvm_mobilenet.inputs import Inputs
from tvm_mobilenet.onnx_file import read_exported
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.quantize.data import calibration_inputs
from tvm_mobilenet.quantize.equalize import equalize
from tvm_mobilenet.quantize.graph import FloatGraph, carry_metadata, prepare
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quality import (
    choose_float_layers,
    layer_costs,
    layer_noise,
    output_noise,
    solo_noise,
)
from tvm_mobilenet.quantize.ranges import activation_ranges
from tvm_mobilenet.quantize.report import QuantizedLayer, QuantizeReport
from tvm_mobilenet.quantize.sessions import Probe
from tvm_mobilenet.quantize.writer import correct_biases, write_qdq

__all__ = ["quantize_model"]

_REPORT_INPUTS = 8
"""Inputs over which the report measures noise: each costs an inference a layer."""


def quantize_model(
    model: str | Path,
    calibration: str | Path,
    *,
    out: Path | str,
    weights: Path | str | None = None,
    options: QuantizeOptions | None = None,
    sensitivity: bool = True,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize a model of ours or a float ONNX file to int8, and say what that cost.

    Weights become int8 with a scale for each output, activations uint8 with one scale a tensor;
    ONNX Runtime and OpenVINO run the file too.

    Args:
        model: a name, one of our weight files, or an `.onnx` file of float32.
        calibration: a folder of pictures, `digits` or `random`.
        out: the file to write, `.onnx`.
        weights: a weight file for a model of ours.
        options: None for the defaults.
        sensitivity: measure what each layer costs when it is quantized alone; needed for
            `keep_float="auto"`.
        progress: told of every stage.

    Raises:
        UsageError: the request cannot be met.
        QuantizeError: the model is quantized already, or has nothing to quantize.
        OutputError: `out` cannot be written.
    """
    from tvm_mobilenet.workflow import onnx_file

    out = Path(out)
    if out.suffix != ".onnx":
        raise UsageError(f"ONNX file {out}: the name must end in .onnx")
    options = options or QuantizeOptions()
    progress = progress or NoProgress()
    with (
        error_context(stage="quantize", model=str(model)),
        tempfile.TemporaryDirectory() as folder,
    ):
        path = onnx_file(model, Path(folder) / "float.onnx", weights=weights, progress=progress)
        exported = read_exported(path)
        source = onnx.load(path)
        graph = prepare(source)
        _check_names(graph, options)
        inputs = calibration_inputs(exported, calibration, options.samples, options.seed)
        original = FloatGraph(onnx.ModelProto.FromString(graph.model.SerializeToString()))
        equalized = equalize(graph, inputs) if options.equalize else 0
        _check_same_function(original, graph, inputs[:2])
        ranges = activation_ranges(graph, inputs, options, progress)
        probed = inputs[:_REPORT_INPUTS]
        solo: dict[str, float] = {}
        if sensitivity or options.keep_float == "auto":
            solo = solo_noise(graph, ranges, probed, progress)
        costs = layer_costs(graph)
        if options.keep_float == "auto":
            kept = tuple(choose_float_layers(solo, costs, options))
        else:
            kept = tuple(options.keep_float)
        quantized = write_qdq(graph, ranges, without=kept)
        corrected = correct_biases(graph, quantized, inputs) if options.bias_correction else 0
        carry_metadata(source, quantized)
        noise = layer_noise(graph, quantized, probed)
        with new_file(out) as temporary:
            temporary.write_bytes(quantized.SerializeToString(deterministic=True))
        whole = output_noise(graph, quantized, probed)
    layers = tuple(
        QuantizedLayer(
            name=layer.name,
            operator=layer.operator,
            macs=costs[layer.name].macs,
            weights=costs[layer.name].weights,
            is_float=layer.name in kept,
            snr_db=_finite(noise.get(layer.name)),
            alone_snr_db=_finite(solo.get(layer.name)),
        )
        for layer in graph.layers
    )
    return QuantizeReport(
        path=str(out),
        sha256=sha256_of(out),
        size_bytes=out.stat().st_size,
        float_size_bytes=len(source.SerializeToString()),
        model=exported.origin.name,
        calibration=str(calibration),
        inputs=len(inputs),
        method=options.method,
        equalized_pairs=equalized,
        corrected_biases=corrected,
        output_snr_db=_finite(whole),
        layers=layers,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _check_names(graph: FloatGraph, options: QuantizeOptions) -> None:
    if options.keep_float == "auto":
        return
    names = [layer.name for layer in graph.layers]
    for name in options.keep_float:
        if name not in names:
            import difflib

            close = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SpecError(
                f"layer {name!r}: the model has no such convolution or dense layer{hint}"
            )


_SAME = 1e-3
"""Share of the outputs' size by which float32 may round otherwise after equalization."""


def _check_same_function(before: FloatGraph, after: FloatGraph, inputs: Sequence[Inputs]) -> None:
    """Make sure that equalization has not changed what is computed."""
    names = sorted(before.outputs)
    for old, new in zip(
        Probe(before.model, names).over(inputs), Probe(after.model, names).over(inputs), strict=True
    ):
        for name in names:
            largest = float(np.abs(old[name]).max(initial=0))
            departure = float(np.abs(old[name] - new[name]).max(initial=0))
            if not departure <= _SAME * max(largest, 1e-6):
                raise QuantizeError(
                    f"equalization changed output {name!r} by {departure:.2e} of {largest:.2e}; "
                    "quantize with --no-equalize"
                )
