"""A detector in int8: body and heads in integers, the detections of the quantized file."""

from __future__ import annotations

import pytest

from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.verify.report import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_only_what_follows_the_heads_stays_in_float(tmp_path):
    model = "ssd_mobilenet_v1_0.25_64"
    export_onnx(model, out=tmp_path / "m.onnx", num_classes=7)
    report = quantize_model(tmp_path / "m.onnx", "digits", out=tmp_path / "q.onnx")
    assert report.output_snr_db is not None
    assert report.output_snr_db > 10
    artifact = compile_model(tmp_path / "q.onnx", out=tmp_path / "a")
    manifest = artifact.manifest
    assert manifest.dtype == "int8"
    convolutions = [layer for layer in manifest.layers if layer.macs]
    assert all(layer.family.startswith("int8") for layer in convolutions)
    drift = verify(artifact.path, inputs=2, drift=True).drift
    assert drift is not None
    assert drift.first_departed is None
