from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.datasets import DIGITS, digits_preprocessing, load_dataset
from tvm_mobilenet.errors import ImageError, InputFileError
from tvm_mobilenet.models.preprocess import load_image


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DIGITS, resolution=32)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10, 5 and 2 pictures of different sizes and formats."""
    rng = np.random.default_rng(0)
    for name, count in (("ant", 10), ("bee", 5), ("cat", 2)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (40 + index, 60, 3), dtype=np.uint8)
            suffix = ("png", "jpg", "bmp")[index % 3]
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.{suffix}")
    return tmp_path / "data"


def test_digits_are_all_there_and_a_fifth_is_held_out(digits):
    assert len(digits.train) + len(digits.held_out) == 1797
    assert abs(len(digits.held_out) - 1797 / 5) < 1
    assert digits.class_names == tuple("0123456789")
    assert np.bincount(digits.held_out.labels).min() >= 34
    assert not digits.mirrored


def test_digits_are_inputs_of_the_models_resolution(digits):
    x = digits.held_out.inputs([0, 5])
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == np.float32
    assert x.min() == -1
    assert x.max() > 0.8
    np.testing.assert_array_equal(x[:, 0], x[:, 2])


def test_no_scan_is_in_both_parts(digits):
    train = {pixels.tobytes() for pixels in digits.train.pixels(range(len(digits.train)))}
    held = [pixels.tobytes() for pixels in digits.held_out.pixels(range(len(digits.held_out)))]
    assert train.isdisjoint(held)


def test_the_split_follows_its_seed_alone(digits):
    again = load_dataset(DIGITS, resolution=48)
    np.testing.assert_array_equal(again.held_out.labels, digits.held_out.labels)
    other = load_dataset(DIGITS, resolution=32, split_seed=1)
    assert not np.array_equal(other.held_out.inputs(), digits.held_out.inputs())


def test_a_scan_saved_as_a_picture_gives_the_same_input(digits, tmp_path):
    source = digits.held_out.sources[7]
    assert isinstance(source, Image.Image)
    source.save(tmp_path / "scan.png")
    x = load_image(tmp_path / "scan.png", digits_preprocessing(32))
    np.testing.assert_array_equal(x, digits.held_out.inputs([7]))


def test_a_folder_becomes_classes_in_order_of_name(folder):
    dataset = load_dataset(folder, resolution=32)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert np.bincount(dataset.train.labels).tolist() == [8, 4, 1]
    assert np.bincount(dataset.held_out.labels).tolist() == [2, 1, 1]
    assert dataset.mirrored


def test_a_folders_pictures_are_preprocessed_as_single_files_are(folder):
    dataset = load_dataset(folder, resolution=32)
    for index, source in enumerate(dataset.held_out.sources):
        assert isinstance(source, Path)
        expected = load_image(source, dataset.preprocessing)
        np.testing.assert_array_equal(dataset.held_out.inputs([index]), expected)


def test_fingerprint_follows_the_files(folder):
    before = load_dataset(folder, resolution=32).fingerprint
    assert load_dataset(folder, resolution=64).fingerprint == before
    (folder / "ant" / "0.png").rename(folder / "ant" / "zero.png")
    assert load_dataset(folder, resolution=32).fingerprint != before


def test_hidden_files_are_no_pictures(folder):
    (folder / ".cache").mkdir()
    (folder / "ant" / ".DS_Store").write_bytes(b"x")
    assert len(load_dataset(folder, resolution=32).train) == 13


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "bee" / "notes.txt").write_text("buzz")
    with pytest.raises(ImageError, match=r"bee/notes\.txt: not a picture"):
        load_dataset(folder, resolution=32)


def test_a_folder_without_classes_is_refused(folder, tmp_path):
    with pytest.raises(InputFileError, match="there is no such folder; give 'digits'"):
        load_dataset(tmp_path / "none", resolution=32)
    with pytest.raises(InputFileError, match="found 0 sub-folders"):
        load_dataset(folder / "ant", resolution=32)
    (folder / "dog").mkdir()
    with pytest.raises(InputFileError, match="dog': found 0 pictures"):
        load_dataset(folder, resolution=32)


def test_a_large_set_is_decoded_again_instead_of_kept(folder, monkeypatch):
    kept = load_dataset(folder, resolution=32).train
    expected = kept.inputs()
    monkeypatch.setattr("tvm_mobilenet.datasets._MAX_CACHED_BYTES", 0)
    decoded = load_dataset(folder, resolution=32).train
    np.testing.assert_array_equal(decoded.inputs(), expected)
    assert not decoded._cache
    assert len(kept._cache) == len(kept)
