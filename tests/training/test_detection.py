from __future__ import annotations

import numpy as np
import pytest
import torch

from tvm_mobilenet.detection.default_boxes import default_boxes
from tvm_mobilenet.detection.scenes import digit_scenes
from tvm_mobilenet.detection.suppression import decode_boxes, overlap
from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.training.detection import encode, match, multibox_loss
from tvm_mobilenet.training.train import train

DEFAULTS = default_boxes((8, 4, 2, 1), (6, 6, 6, 6))


def test_scenes_are_the_same_every_time_and_hold_what_they_say():
    scenes = digit_scenes(48, train=6, held_out=4)
    again = digit_scenes(48, train=6, held_out=4)
    assert scenes.fingerprint == again.fingerprint
    assert scenes.fingerprint != digit_scenes(48, train=7, held_out=4).fingerprint
    assert scenes.train.pixels.shape == (6, 48, 48, 3)
    for pixels, true in zip(scenes.train.pixels, scenes.train.true, strict=True):
        ground = float(np.median(pixels))
        assert 1 <= len(true.boxes) <= 3
        for box, label in zip(true.boxes, true.classes, strict=True):
            left, top, right, bottom = (box * 48).round().astype(int)
            assert 12 <= right - left <= 29
            assert 0 <= label <= 9
            assert pixels[top:bottom, left:right].max() > ground + 60


def test_offsets_are_what_decoding_undoes():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (len(DEFAULTS), 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], axis=1).astype("float32")
    np.testing.assert_allclose(decode_boxes(encode(boxes, DEFAULTS), DEFAULTS), boxes, atol=1e-5)


def test_every_true_box_has_a_default_one():
    boxes = np.asarray([[0.1, 0.1, 0.15, 0.9], [0.4, 0.4, 0.7, 0.7]], np.float32)
    matched = match(DEFAULTS, boxes)
    assert set(matched) == {-1, 0, 1}
    # The first is too narrow for any shape: only its best is taken.
    assert (matched == 0).sum() == 1
    half = DEFAULTS[:, 2:] / 2
    corners = np.concatenate([DEFAULTS[:, :2] - half, DEFAULTS[:, :2] + half], axis=1)
    assert (overlap(boxes[1], corners[matched == 1]) > 0.5).all()


def test_the_loss_counts_three_negatives_for_each_positive():
    labels = torch.tensor([[2, 0, 0, 0, 0, 0]])
    logits = torch.zeros(1, 6, 3)
    logits[0, 1:, 1] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])  # the hardest first
    wanted = torch.zeros(1, 6, 4)
    offsets = torch.zeros(1, 6, 4)
    offsets[0, 0, 0] = 3.0
    offsets[0, 1:] = 100.0  # of negatives: without effect
    each = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")
    expected = each[:4].sum() + 2.5
    assert multibox_loss(offsets, logits, labels, wanted).item() == pytest.approx(expected.item())


def test_other_data_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputFileError, match="detectors are trained on 'digits' alone"):
        train("ssd_mobilenet_v1_0.25_64", tmp_path, out=tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
