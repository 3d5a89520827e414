"""From training to masks: the compiled segmenter is as good as PyTorch's, and says what it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.segmentation.conftest import NAME, SIDE, Trained
from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import ImageError, OutputError, SpecError, UsageError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.models.preprocess import normalize
from tvm_mobilenet.segmentation.quality import mean_iou
from tvm_mobilenet.segmentation.segment import segment
from tvm_mobilenet.verify.report import verify


def test_the_deployed_model_keeps_the_quality_of_the_trained(trained: Trained):
    split = trained.scenes.held_out
    labels, found = [], []
    with LocalExecutor(open_artifact(trained.artifact), threads=1) as executor:
        for index in range(len(split)):
            pixels, mask = split.scene(index)
            x = normalize(pixels[None], trained.scenes.preprocessing)
            (scores,) = executor.run({"input": x}).values()
            assert scores.shape == (1, 11, SIDE, SIDE)
            labels.append(mask)
            found.append(scores[0].argmax(axis=0))
    quality = mean_iou(np.stack(labels), np.stack(found), 11)
    # Training measured the same scenes in PyTorch; all canvas would be some 0.08.
    assert abs(quality - trained.quality) < 0.01
    assert trained.quality > 0.1


def test_verify_compares_pixel_by_pixel_and_layer_by_layer(trained: Trained):
    report = verify(trained.artifact, inputs=2, drift=True, threads=1, weights=trained.weights)
    assert {found.reference for found in report.comparisons} == {"onnxruntime", "pytorch"}
    for found in report.comparisons:
        assert found.top1_agreement == 1
        assert found.is_within
    assert report.drift is not None
    assert report.drift.first_departed is None
    compared = [layer for layer in report.drift.layers if layer.relative_l2 is not None]
    # The convolution that goes before a resize is no tensor of the graph.
    assert len(report.drift.layers) - len(compared) <= 1


def test_no_kernel_but_those_of_families_and_no_transpose(trained: Trained):
    layers = open_artifact(trained.artifact).manifest.layers
    assert {layer.family for layer in layers if layer.tensor} <= {
        "cascade", "conv", "depthwise", "gated", "pointwise", "pool", "resize", "separable",
    }  # fmt: skip
    assert [layer.family for layer in layers].count("resize") == 2
    assert layers[-1].layout == "NCHW"


def test_a_picture_becomes_a_mask_and_an_overlay_of_its_size(trained: Trained, picture, tmp_path):
    (found,) = segment(trained.artifact, [picture], out=tmp_path / "masks", threads=1)
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        "street.mask.png",
        "street.overlay.png",
    ]
    with Image.open(found.mask) as mask, Image.open(found.overlay) as shown:
        assert (mask.mode, mask.size, shown.size) == ("P", (90, 50), (90, 50))
        values = np.asarray(mask)
    assert {one.index for one in found.classes} == set(np.unique(values).tolist())
    assert sum(one.share for one in found.classes) == pytest.approx(1)
    assert found.classes[0].label == "canvas"
    assert found.to_dict()["classes"][0]["index"] == 0
    assert not found.is_random


def test_bad_requests_leave_nothing(trained: Trained, picture: Path, tmp_path: Path, colour_dir):
    out = tmp_path / "masks"
    with pytest.raises(ImageError, match="no such file"):
        segment(trained.artifact, [picture, tmp_path / "none.png"], out=out)
    with pytest.raises(UsageError, match="would take the place"):
        segment(trained.artifact, [picture, tmp_path / picture.name], out=out)
    with pytest.raises(SpecError, match="cannot segment"):
        segment(colour_dir, [picture], out=out)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(OutputError):
        segment(trained.artifact, [picture], out=out)


def test_the_file_carries_names_and_the_measure(trained: Trained):
    from tvm_mobilenet.models.weight_file import describe_weights

    description = describe_weights(trained.weights)
    assert description is not None
    assert description.model == NAME
    assert description.training is not None
    assert description.training["measure"] == "mIoU"
    assert open_artifact(trained.artifact).manifest.class_names == trained.scenes.class_names
