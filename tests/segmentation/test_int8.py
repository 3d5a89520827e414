"""A segmenter in int8: atrous convolutions in integers, resizing in float32, as good as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.segmentation.conftest import Trained
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.models.preprocess import normalize
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.segmentation.quality import mean_iou
from tvm_mobilenet.verify.report import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = [pytest.mark.slow, pytest.mark.torch]


def test_int8_agrees_with_onnx_runtime_and_keeps_the_quality(trained: Trained, tmp_path: Path):
    quantized = tmp_path / "int8.onnx"
    quantize_model(trained.onnx, "random", out=quantized, sensitivity=False)
    artifact = compile_model(quantized, out=tmp_path / "out", use_logs=False)
    manifest = artifact.manifest
    assert manifest.dtype == "int8"
    # The last three blocks have a rate of 2: their filters are in integers all the same.
    families = [layer.family for layer in manifest.layers]
    assert families.count("int8_depthwise") == 15
    assert any("image.resize2d" in island.operators for island in manifest.float_islands)
    report = verify(tmp_path / "out", inputs=4, threads=1)
    (against_onnx_runtime,) = [f for f in report.comparisons if f.reference == "onnxruntime"]
    assert against_onnx_runtime.is_within
    split = trained.scenes.held_out
    labels, found = [], []
    with LocalExecutor(artifact, threads=1) as executor:
        for index in range(len(split)):
            pixels, mask = split.scene(index)
            x = normalize(pixels[None], trained.scenes.preprocessing)
            (scores,) = executor.run({"input": x}).values()
            labels.append(mask)
            found.append(scores[0].argmax(axis=0))
    quality = mean_iou(np.stack(labels), np.stack(found), 11)
    assert quality > trained.quality - 0.05
