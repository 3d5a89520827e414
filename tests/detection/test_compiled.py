"""A detector through export and compilation: what is in the library, and what it computes."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.compiler import schedule_onnx
from tvm_mobilenet.detection.onnx_function import OUTPUTS
from tvm_mobilenet.errors import CompileError, SpecError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.verify.engines import onnx_file, onnx_session
from tvm_mobilenet.workflow import compile_model

V1 = "ssd_mobilenet_v1_0.25_64"


@pytest.fixture(
    scope="module",
    params=[
        V1,
        pytest.param("ssdlite_mobilenet_v2_0.35_64", marks=pytest.mark.slow),
        pytest.param("ssdlite_mobilenet_v3_large_64", marks=pytest.mark.slow),
    ],
)
def artifact(request, tmp_path_factory) -> Artifact:
    return compile_model(request.param, out=tmp_path_factory.mktemp("ssd") / "a", num_classes=7)


def test_nothing_is_left_to_the_fallback(artifact):
    """No transpose at all, no loose element-wise kernel, no joining of the heads' outputs."""
    layers = artifact.manifest.layers
    assert {layer.family for layer in layers} <= {
        "cascade", "conv", "depthwise", "detections", "gated", "pointwise", "pool", "separable",
    }  # fmt: skip
    assert [layer.family for layer in layers].count("detections") == 1
    assert layers[-1].family == "detections"


def test_detections_are_those_of_onnxruntime(artifact):
    session = onnx_session(onnx_file(artifact))
    with LocalExecutor(artifact, 2) as executor:
        for inputs in seeded(artifact.manifest, 4):
            found = executor.run(inputs)
            expected = dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))
            assert expected["count"][0] > 10
            np.testing.assert_array_equal(found["count"], expected["count"])
            np.testing.assert_array_equal(found["classes"], expected["classes"])
            np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4)
            np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-4)


def test_one_picture_at_a_time(tmp_path):
    with pytest.raises(SpecError, match="one picture at a time"):
        export_onnx(V1, out=tmp_path / "m.onnx", batch=2)
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_refused_in_one_line(artifact):
    with pytest.raises(CompileError, match="a detector's suppression has no GPU kernel"):
        schedule_onnx(onnx_file(artifact), load_target("opencl-generic"))
