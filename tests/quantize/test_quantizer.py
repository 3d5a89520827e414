"""A float file to a quantized one, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.frontend.qdq_models import run_onnx
from tvm_mobilenet.errors import InputFileError, QuantizeError, SpecError
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.onnx_file import read_exported
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.quantize.graph import prepare
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quality import output_noise
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.quantize.ranges import activation_ranges
from tvm_mobilenet.quantize.sessions import Probe
from tvm_mobilenet.quantize.writer import correct_biases, write_qdq


def test_weights_have_a_scale_each_and_activations_fill_the_bounds(
    colour_onnx: Path, tmp_path: Path
) -> None:
    out = tmp_path / "colour.int8.onnx"
    report = quantize_model(
        colour_onnx, "random", out=out, options=QuantizeOptions(samples=12, method="minmax")
    )
    model = onnx.load(out)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convs) == 3
    for node in convs:
        weight = producers[node.input[1]]
        values, scale, zero = (tensors[name] for name in weight.input)
        assert values.dtype == np.int8
        assert scale.shape == (values.shape[0],)
        assert not zero.any()
        assert tensors[producers[node.input[0]].input[2]].dtype == np.uint8
        assert tensors[producers[node.input[2]].input[0]].dtype == np.int32
    assert not any(node.op_type == "Relu" for node in model.graph.node)
    assert [layer.name for layer in report.layers] == [
        "stem", "depthwise", "pointwise", "classifier",
    ]  # fmt: skip
    assert all(layer.snr_db is not None and layer.snr_db > 25 for layer in report.layers)
    assert all(layer.alone_snr_db is not None for layer in report.layers)
    exported = read_exported(out)
    assert exported.class_names == ("red", "green", "blue")
    for inputs in seeded(exported, 6):
        x = inputs["x"]
        assert run_onnx(model, x).argmax() == run_onnx(onnx.load(colour_onnx), x).argmax()


def test_layers_left_in_float_keep_their_weights(separable_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    options = QuantizeOptions(samples=4, keep_float=("dw",), equalize=False)
    report = quantize_model(separable_onnx, "random", out=out, options=options, sensitivity=False)
    assert report.kept_float == ("dw",)
    model = onnx.load(out)
    constants = {t.name: t for t in model.graph.initializer}
    dw = next(node for node in model.graph.node if node.name == "dw")
    assert constants[dw.input[1]].data_type == onnx.TensorProto.FLOAT
    with pytest.raises(SpecError, match="did you mean dw"):
        quantize_model(
            separable_onnx, "random", out=out, options=QuantizeOptions(keep_float=("dww",))
        )


def test_auto_leaves_the_costliest_in_float_within_the_budget(
    separable_onnx: Path, tmp_path: Path
) -> None:
    def quantized(**options: Any) -> Any:
        return quantize_model(
            separable_onnx,
            "random",
            out=tmp_path / "q.onnx",
            options=QuantizeOptions(samples=6, equalize=False, keep_float="auto", **options),
        )

    none = quantized(size_budget=0.0, latency_budget=0.0)
    assert none.kept_float == ()
    some = quantized(size_budget=3.0, latency_budget=3.0)
    costs = {layer.name: layer.alone_snr_db for layer in some.layers}
    assert some.kept_float
    assert min(costs, key=lambda name: costs[name] or 0) in some.kept_float
    assert some.output_snr_db > none.output_snr_db


def test_bias_correction_takes_the_mean_error_away(separable: Any, images: list[Any]) -> None:
    """Rounding made so coarse that its mean shows: int8 weights after a scale of eight steps."""
    graph = prepare(separable(high=6.0))
    rng = np.random.default_rng(0)
    for layer in graph.layers:
        weight = graph.weights(layer.weight).copy()
        outlier = weight.reshape(weight.shape[0], -1)
        outlier[:, rng.integers(outlier.shape[1])] *= 12
        graph.set_weights(layer.weight, weight)
    ranges = activation_ranges(graph, images, QuantizeOptions(), NoProgress())
    plain = write_qdq(graph, ranges)
    corrected = write_qdq(graph, ranges)
    assert correct_biases(graph, corrected, images) > 0

    def mean_error(model: onnx.ModelProto) -> float:
        ours = [found["y"] for found in Probe(model, ["y"]).over(images)]
        theirs = [found["y"] for found in Probe(graph.model, ["y"]).over(images)]
        return float(np.abs((np.concatenate(ours) - np.concatenate(theirs)).mean(axis=0)).mean())

    assert mean_error(corrected) < 0.8 * mean_error(plain)
    assert output_noise(graph, corrected, images) > output_noise(graph, plain, images)


def test_bad_requests_are_named(separable_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    with pytest.raises(InputFileError, match="no such folder"):
        quantize_model(separable_onnx, tmp_path / "none", out=out)
    with pytest.raises(SpecError, match="does not say how pictures"):
        quantize_model(separable_onnx, "digits", out=out)
    quantize_model(
        separable_onnx, "random", out=out, options=QuantizeOptions(samples=2), sensitivity=False
    )
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize_model(out, "random", out=tmp_path / "twice.onnx")
    assert not (tmp_path / "twice.onnx").exists()
