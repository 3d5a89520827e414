"""Scenes that are drawn on the spot, and the measure of masks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from tvm_mobilenet.segmentation.masks import mask_picture, overlay, palette
from tvm_mobilenet.segmentation.quality import IGNORED, mean_iou
from tvm_mobilenet.segmentation.scenes import load_scenes


def test_a_scene_is_the_same_each_time_and_shows_digits_on_a_canvas():
    first, again = (load_scenes(48, train=4, held_out=3) for _ in range(2))
    assert first.fingerprint == again.fingerprint != load_scenes(48, train=5).fingerprint
    assert (len(first.train), len(first.held_out)) == (4, 3)
    assert first.class_names[:2] == ("canvas", "0")
    for index in range(3):
        pixels, mask = first.train.scene(index)
        np.testing.assert_array_equal(pixels, again.train.scene(index)[0])
        assert (pixels.shape, mask.shape) == ((48, 48, 3), (48, 48))
        assert mask.max() > 0
        assert mask.max() <= 10
        # Digits are written brighter than the canvas.
        assert pixels[mask > 0].mean() > pixels[mask == 0].mean()
    assert not np.array_equal(first.train.scene(0)[1], first.held_out.scene(0)[1])


def test_mean_iou_of_a_case_worked_out_by_hand():
    labels = np.array([[0, 0, 1], [1, 2, IGNORED]])
    found = np.array([[0, 1, 1], [1, 0, 2]])
    # Class 0: 1 of 3, class 1: 2 of 3, class 2: 0 of 1; class 3 occurs in neither.
    assert mean_iou(labels, found, 4) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert mean_iou(labels, labels, 4) == 1


def test_mean_iou_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 5, (2, 3, 20, 20))
    expected = jaccard_score(labels.ravel(), found.ravel(), average="macro")
    assert mean_iou(labels, found, 5) == pytest.approx(expected)


def test_the_palette_is_pascal_vocs():
    colours = palette().tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]  # person
    assert colours[255] == [224, 224, 192]


def test_a_mask_keeps_its_classes_and_an_overlay_the_background():
    mask = np.array([[0, 1], [15, 0]], np.uint8)
    shown = mask_picture(mask)
    np.testing.assert_array_equal(np.asarray(shown), mask)
    assert shown.convert("RGB").getpixel((0, 1)) == (192, 128, 128)
    image = mask_picture(np.full((2, 2), 2, np.uint8)).convert("RGB")
    blended = np.asarray(overlay(image, mask))
    assert blended.tolist() == [[[0, 128, 0], [64, 64, 0]], [[96, 128, 64], [0, 128, 0]]]
