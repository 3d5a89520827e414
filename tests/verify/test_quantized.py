"""Verification of int8 models: steps, ONNX Runtime's integers, and what float says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import ParityError
from tvm_mobilenet.manifest import FileRecord
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.verify import verify
from tvm_mobilenet.verify.engines import onnx_session
from tvm_mobilenet.verify.parity import compare_outputs
from tvm_mobilenet.verify.quantized import steps_apart, without_rounding
from tvm_mobilenet.workflow import compile_model


@pytest.fixture(scope="module")
def int8_onnx(colour_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "colour.int8.onnx"
    options = QuantizeOptions(samples=12)
    quantize_model(colour_onnx, "random", out=path, options=options, sensitivity=False)
    return path


@pytest.fixture(scope="module")
def int8_dir(int8_onnx: Path) -> Path:
    compile_model(int8_onnx, out=int8_onnx.parent / "out")
    return int8_onnx.parent / "out"


def test_an_int8_model_agrees_with_onnx_runtime_in_every_layer(
    int8_dir: Path, colour_onnx: Path
) -> None:
    manifest = open_artifact(int8_dir).manifest
    assert manifest.dtype == "int8"
    assert manifest.float_islands == ()
    report = verify(int8_dir, inputs=6, threads=1, drift=True, float_onnx=colour_onnx)
    report.check()
    (statistics,) = report.comparisons
    assert statistics.judged_as == "int8"
    assert statistics.top1_agreement == 1
    assert report.drift is not None
    assert report.drift.is_integer
    steps = [layer.steps for layer in report.drift.layers if layer.steps is not None]
    assert len(steps) >= 2
    assert max(steps) <= 1
    against_float = [layer.float_snr_db for layer in report.drift.layers if layer.steps is not None]
    assert all(value is not None and value > 20 for value in against_float)
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_layer_with_a_wrong_weight_is_found(int8_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(int8_dir, tmp_path / "wrong"))
    path = folder / "model.onnx"
    model = onnx.load(path)
    conv = next(node for node in model.graph.node if node.name == "depthwise")
    producers = {name: node for node in model.graph.node for name in node.output}
    name = producers[conv.input[1]].input[0]
    (tensor,) = (item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[1] = -values[1]
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["onnx"] = FileRecord.of(path).model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = verify(folder, inputs=4, threads=1, drift=True)
    assert report.drift is not None
    departed = [layer for layer in report.drift.layers if layer.exceeds]
    # Every layer reads ONNX Runtime's integers: only the one with the other weights is off.
    assert [layer.tensor for layer in departed] == ["d_QuantizeLinear_Output"]
    assert departed[0].steps is not None
    assert departed[0].steps > 1
    with pytest.raises(ParityError, match="d_QuantizeLinear_Output"):
        report.check()


def test_int8_q_counts_as_uint8_q_and_128() -> None:
    theirs = np.asarray([0, 128, 255], np.uint8)
    assert steps_apart(theirs, np.asarray([-128, 0, 127], np.int8)) == 0
    assert steps_apart(theirs, np.asarray([-126, 0, 126], np.int8)) == 2
    assert steps_apart(theirs, theirs) == 0


def test_scores_of_one_step_are_ties_only_where_they_are_equal() -> None:
    theirs = [np.asarray([[0.0, 1.0, 1.0, 0.5]], np.float32)]
    ours = [np.asarray([[0.0, 1.0, 0.9, 0.5]], np.float32)]
    other = [np.asarray([[0.0, 0.4, 0.4, 1.0]], np.float32)]
    same = compare_outputs("onnxruntime", "y", theirs, ours, judged_as="int8")
    assert same.top1_agreement == 1
    wrong = compare_outputs("onnxruntime", "y", theirs, other, judged_as="int8")
    assert wrong.top1_agreement == 0
    assert not wrong.is_within
    assert compare_outputs(
        "pytorch", "y", theirs, other, judged_as="int8 against float32"
    ).is_within


def test_without_rounding_is_the_float_model_but_for_its_weights(
    int8_onnx: Path, colour_onnx: Path
) -> None:
    x = np.random.default_rng(2).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)

    def run(model: onnx.ModelProto) -> np.ndarray:
        return np.asarray(onnx_session(model.SerializeToString()).run(None, {"x": x})[0])

    model = onnx.load(int8_onnx)
    expected = run(onnx.load(colour_onnx))
    unrounded = np.abs(run(without_rounding(model)) - expected).max()
    assert unrounded <= np.abs(run(model) - expected).max()
    assert unrounded < 0.05 * np.abs(expected).max()
    operators = {node.op_type for node in without_rounding(model).graph.node}
    assert "QuantizeLinear" not in operators
