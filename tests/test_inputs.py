"""Inputs to compare with: reproducible, prepared as pictures are, in the model's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.inputs import image_input, in_onnx_layout, picture_batches, seeded
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.records import TensorInfo


@pytest.fixture
def manifest(colour_dir: Path) -> Manifest:
    return open_artifact(colour_dir).manifest


def with_input(manifest: Manifest, **fields) -> Manifest:
    """Change the only input of a model."""
    return manifest.model_copy(update={"inputs": (manifest.inputs[0].model_copy(update=fields),)})


def test_a_seed_gives_the_same_inputs_and_another_gives_others(manifest: Manifest):
    first = [inputs["x"] for inputs in seeded(manifest, 3, seed=4)]
    again = [inputs["x"] for inputs in seeded(manifest, 3, seed=4)]
    other = [inputs["x"] for inputs in seeded(manifest, 3, seed=5)]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_first_of_many_are_those_of_few(manifest: Manifest):
    few = [inputs["x"] for inputs in seeded(manifest, 2)]
    many = [inputs["x"] for inputs in seeded(manifest, 5)]
    np.testing.assert_array_equal(few, many[:2])


def test_they_are_pictures_after_preprocessing(manifest: Manifest):
    for inputs in seeded(manifest, 4):
        pixels = inputs["x"] * 255
        assert pixels.min() >= 0
        assert pixels.max() <= 255.001
        np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)


def test_every_other_one_is_smooth(manifest: Manifest):
    steps = [float(np.abs(np.diff(v["x"], axis=-1)).mean()) for v in seeded(manifest, 4)]
    assert min(steps[0], steps[2]) > 3 * max(steps[1], steps[3])


def test_nhwc_is_the_same_picture(manifest: Manifest):
    nhwc = with_input(manifest, shape=(1, 32, 32, 3), layout="NHWC")
    (expected,), (found,) = seeded(manifest, 1), seeded(nhwc, 1)
    assert found["x"].shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(in_onnx_layout(found["x"], "NHWC"), expected["x"])


def test_without_preprocessing_they_are_drawn_by_dtype(manifest: Manifest):
    inputs = tuple(
        TensorInfo(name=dtype, shape=(50, 7), dtype=dtype, layout="any")
        for dtype in ("float32", "int64", "bool")
    )
    bare = manifest.model_copy(update={"inputs": inputs, "preprocessing": None})
    (drawn,) = seeded(bare, 1)
    for info in inputs:
        assert drawn[info.name].dtype == info.dtype
        assert drawn[info.name].shape == info.shape
    assert abs(float(drawn["float32"].std()) - 1) < 0.2
    assert set(np.unique(drawn["int64"])) == set(range(10))


def test_pictures_are_grouped_and_the_last_group_filled_up(manifest: Manifest):
    batched = with_input(manifest, shape=(2, 3, 32, 32))
    pictures = [np.full((3, 32, 32), value, np.float32) for value in range(5)]
    groups = list(picture_batches(batched, iter(pictures)))
    assert [count for _, count in groups] == [2, 2, 1]
    assert all(inputs["x"].shape == (2, 3, 32, 32) for inputs, _ in groups)
    kept = np.concatenate([inputs["x"][:count] for inputs, count in groups])
    np.testing.assert_array_equal(kept, pictures)


def test_a_model_that_does_not_say_how_pictures_are_prepared(manifest: Manifest):
    with pytest.raises(SpecError, match="does not say how to prepare them"):
        image_input(manifest.model_copy(update={"preprocessing": None}))


def test_a_model_whose_input_is_no_picture(manifest: Manifest):
    with pytest.raises(SpecError, match="not one picture of 32 x 32 pixels"):
        image_input(with_input(manifest, shape=(1, 3, 32, 64)))
