from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tvm_mobilenet.errors import (
    ExportError,
    OutputError,
    SpecError,
    UnknownModelError,
    UsageError,
    WeightsError,
)
from tvm_mobilenet.export import OPSET, export_onnx
from tvm_mobilenet.models.mobilenet_v1 import BATCH_NORM_EPS
from tvm_mobilenet.models.preprocess import default_preprocessing
from tvm_mobilenet.models.weight_file import WeightsDescription
from tvm_mobilenet.models.weights import create_model, save_weights
from tvm_mobilenet.onnx_file import read_exported

NAME = "mobilenet_v1_0.25_32"


@pytest.fixture(scope="module")
def random_export(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "net.onnx"
    return export_onnx(NAME, out=out, num_classes=10, seed=2)


@pytest.fixture
def weights(tmp_path):
    description = WeightsDescription(
        model=NAME,
        num_classes=3,
        class_names=("a", "b", "c"),
        preprocessing=default_preprocessing(32),
        batch_norm_eps=BATCH_NORM_EPS,
    )
    module = create_model(NAME, num_classes=3).module
    return save_weights(module, tmp_path / "w.safetensors", description)


def test_names_shapes_and_opset_are_pinned(random_export):
    assert [(t.name, t.shape, t.dtype) for t in random_export.inputs] == [
        ("input", (1, 3, 32, 32), "float32")
    ]
    assert [(t.name, t.shape) for t in random_export.outputs] == [("logits", (1, 10))]
    model = onnx.load(random_export.path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    onnx.checker.check_model(model, full_check=True)


def test_computes_what_pytorch_does(random_export):
    module = create_model(NAME, num_classes=10, seed=2).module
    session = ort.InferenceSession(random_export.path)
    x = np.random.default_rng(7).standard_normal((1, 3, 32, 32), dtype=np.float32)
    (found,) = session.run(None, {"input": x})
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    # See MAX_RELATIVE_ERROR for the reason of 1e-4.
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert 0 < random_export.max_abs_error < 1e-4 * 100


def test_says_that_the_weights_are_random(random_export):
    assert random_export.origin.is_random
    assert random_export.origin.weights == "random (seed 2)"
    assert random_export.origin.name == NAME


def test_what_is_known_travels_in_the_file(weights, tmp_path):
    exported = export_onnx(NAME, weights=weights, out=tmp_path / "net.onnx")
    again = read_exported(tmp_path / "net.onnx")
    assert again == exported.model_copy(update={"max_abs_error": None})
    assert again.class_names == ("a", "b", "c")
    assert again.preprocessing == default_preprocessing(32)
    assert again.origin.weights == "w.safetensors"
    assert again.origin.weights_sha256 is not None
    assert not again.origin.is_random


def test_the_same_model_gives_the_same_bytes(random_export, tmp_path):
    again = export_onnx(NAME, out=tmp_path / "elsewhere.onnx", num_classes=10, seed=2)
    assert again.sha256 == random_export.sha256
    other = export_onnx(NAME, out=tmp_path / "elsewhere.onnx", num_classes=10, seed=3)
    assert other.sha256 != random_export.sha256


def test_batch_is_fixed_in_the_file(tmp_path):
    exported = export_onnx(NAME, out=tmp_path / "net.onnx", num_classes=10, batch=3)
    assert exported.inputs[0].shape == (3, 3, 32, 32)
    assert exported.outputs[0].shape == (3, 10)


def test_batch_norms_are_folded_and_tensors_named_after_modules(random_export):
    graph = onnx.load(random_export.path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == kinds.count("Clip") == 27
    assert set(kinds) <= {"Conv", "Clip", "ReduceMean", "Reshape", "Gemm"}
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert names[:4] == ["stem.bn", "stem.act", "blocks.0.depthwise.bn", "blocks.0.depthwise.act"]
    assert all(node.output[0] in (node.name, "logits") for node in graph.node)
    computed = {output for node in graph.node for output in node.output}
    assert {value.name for value in graph.value_info} <= computed | {
        tensor.name for tensor in graph.initializer
    }


def test_no_path_of_this_machine_is_in_the_file(random_export):
    content = Path(random_export.path).read_bytes()
    assert b".py" not in content
    assert b"/home" not in content
    assert b"site-packages" not in content


def test_says_nothing_on_its_own(tmp_path, capfd, caplog):
    caplog.set_level(logging.WARNING)
    export_onnx(NAME, out=tmp_path / "net.onnx", num_classes=2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_file_that_disagrees_with_pytorch_is_not_kept(tmp_path, monkeypatch):
    from tvm_mobilenet import export

    trace = export._trace

    def wrong(created, batch):
        model = trace(created, batch)
        bias = next(t for t in model.graph.initializer if t.name == "classifier.bias")
        values = onnx.numpy_helper.to_array(bias).copy()
        values[1] += 0.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(export, "_trace", wrong)
    with pytest.raises(ExportError, match=r"departs from PyTorch by 1\.00e-02, more than 0.0001"):
        export_onnx(NAME, out=tmp_path / "net.onnx", num_classes=4)
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_a_disagreement(tmp_path, monkeypatch):
    from tvm_mobilenet import export

    nothing = np.full((1, 2), np.nan, np.float32)
    monkeypatch.setattr(export, "_torch_outputs", lambda _module, _x: [nothing])
    with pytest.raises(ExportError, match="departs from PyTorch by nan"):
        export_onnx(NAME, out=tmp_path / "net.onnx", num_classes=2)


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        ({"model_name": "mobilenet_v1_1.0_225x"}, UnknownModelError, "did you mean"),
        ({"model_name": "mobilenet_v1_0_32"}, SpecError, "alpha is 0.0"),
        ({"model_name": "mobilenet_v1_1.0_0"}, SpecError, "resolution is 0"),
        ({"batch": 0}, SpecError, "batch is 0"),
        ({"num_classes": 0}, SpecError, "number of classes is 0"),
        ({"out": "net.pb"}, UsageError, "must end in .onnx"),
        ({"weights": "none.safetensors"}, WeightsError, "there is no such file"),
    ],
)
def test_a_wrong_request_leaves_nothing(tmp_path, request_, error, match, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        export_onnx(**({"model_name": NAME, "out": "net.onnx"} | request_))
    assert not list(tmp_path.iterdir())


def test_weights_of_another_alpha_are_refused(weights, tmp_path):
    with pytest.raises(WeightsError, match=r"for alpha 0\.25, but the model has alpha 0\.5"):
        export_onnx("mobilenet_v1_0.5_32", weights=weights, out=tmp_path / "net.onnx")


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(NAME, out=tmp_path / "file" / "net.onnx", num_classes=2)


def test_the_error_says_where_it_happened(tmp_path):
    with pytest.raises(SpecError) as caught:
        export_onnx("mobilenet_v1_0_32", out=tmp_path / "net.onnx")
    assert (caught.value.stage, caught.value.model) == ("export", "mobilenet_v1_0_32")
