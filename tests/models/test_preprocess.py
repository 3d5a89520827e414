from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.errors import ImageError
from tvm_mobilenet.models.preprocess import (
    decode_image,
    default_preprocessing,
    for_resolution,
    load_image,
    normalize,
    square_pixels,
)
from tvm_mobilenet.records import Preprocessing

PLAIN = Preprocessing(resize=4, crop=4, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")


@pytest.fixture
def gradient() -> Image.Image:
    """A picture of 6 columns and 4 rows: red tells the column, green the row."""
    rows, columns = np.mgrid[0:4, 0:6]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8) * 10)


def test_gives_planes_of_the_centre_in_rgb(gradient, tmp_path):
    gradient.save(tmp_path / "x.png")
    x = load_image(tmp_path / "x.png", PLAIN)
    assert x.shape == (1, 3, 4, 4)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    columns, rows = np.meshgrid([10, 20, 30, 40], [0, 10, 20, 30])
    np.testing.assert_array_equal(np.round(x[0, 0] * 255), columns)
    np.testing.assert_array_equal(np.round(x[0, 1] * 255), rows)


def test_scales_subtracts_and_divides_per_channel():
    pixels = np.full((1, 2, 2, 3), [0, 51, 255], np.uint8)
    preprocessing = Preprocessing(resize=2, crop=2, mean=(0.5, 0.1, 0.2), std=(0.5, 0.1, 0.4))
    x = normalize(pixels, preprocessing)
    np.testing.assert_allclose(x[0, :, 0, 0], [-1, 1, 2], rtol=1e-6)


def test_bgr_reverses_the_channels():
    pixels = np.full((1, 2, 2, 3), [10, 20, 30], np.uint8)
    preprocessing = PLAIN.model_copy(update={"crop": 2, "channel_order": "BGR"})
    x = normalize(pixels, preprocessing)
    np.testing.assert_array_equal(np.round(x[0, :, 0, 0] * 255), [30, 20, 10])


def test_resizes_the_short_side_before_it_crops():
    picture = Image.new("RGB", (100, 50))
    preprocessing = Preprocessing(resize=20, crop=16, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = square_pixels(picture, preprocessing)
    assert pixels.shape == (20, 20, 3)
    assert normalize(pixels[None], preprocessing).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_upscales_a_single_pixel_with_every_interpolation(interpolation):
    preprocessing = PLAIN.model_copy(update={"interpolation": interpolation})
    pixels = square_pixels(Image.new("RGB", (1, 1), (1, 2, 3)), preprocessing)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "I;16"])
def test_reads_every_common_mode_as_rgb(mode, tmp_path):
    # A grey that is in the palette of "P"; "1" knows only black and white.
    grey = 255 if mode == "1" else 204
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 5), grey << 8, np.uint16))
    else:
        image = Image.new("RGB", (5, 5), (grey, grey, grey)).convert(mode)
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "YCbCr", "I;16", "LA") else "x.png")
    image.save(path)
    decoded = np.asarray(decode_image(path))
    assert decoded.shape == (5, 5, 3)
    assert np.abs(decoded.astype(int) - grey).max() <= 1  # YCbCr rounds


def test_transparent_parts_become_white(tmp_path):
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert np.asarray(decode_image(tmp_path / "x.png")).min() == 255


def test_obeys_the_orientation_that_a_camera_noted(gradient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    gradient.save(tmp_path / "x.png", exif=exif)
    assert decode_image(tmp_path / "x.png").size == (4, 6)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.png", b"no picture"), ("empty.jpg", b""), ("x.txt", b"P6\n"), ("zeros.gif", bytes(100))],
)
def test_a_file_that_is_no_picture_is_refused_in_one_line(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"image .*{name}: not a picture") as caught:
        load_image(path, PLAIN)
    assert "\n" not in str(caught.value)


def test_a_picture_cut_short_is_refused(tmp_path):
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match="not a picture that can be read"):
        load_image(path, PLAIN)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match="there is no such file"):
        load_image(tmp_path / "none.png", PLAIN)
    with pytest.raises(ImageError, match="it is a folder"):
        load_image(tmp_path, PLAIN)


def test_a_picture_too_large_to_be_safe_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert load_image(path, PLAIN).shape == (1, 3, 4, 4), "large, but such cameras exist"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(path, PLAIN)


def test_default_is_that_of_tf_slim():
    preprocessing = default_preprocessing(224)
    assert (preprocessing.resize, preprocessing.crop) == (256, 224)
    x = normalize(np.zeros((1, 256, 256, 3), np.uint8), preprocessing)
    assert x.shape == (1, 3, 224, 224)
    assert x.min() == x.max() == -1


def test_another_resolution_keeps_the_share_that_is_cut_away():
    scaled = for_resolution(default_preprocessing(224), 112)
    assert (scaled.resize, scaled.crop) == (128, 112)
    assert for_resolution(scaled, 112) is scaled


def test_preprocessing_needs_no_torch():
    code = (
        "import sys; import tvm_mobilenet.models.preprocess, tvm_mobilenet.datasets, "
        "tvm_mobilenet.onnx_file, tvm_mobilenet.models.weight_file; "
        "assert 'torch' not in sys.modules and 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
