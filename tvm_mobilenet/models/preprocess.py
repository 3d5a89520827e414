"""A picture file to the input tensor of a model. Needs Pillow and numpy only."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tvm_mobilenet.errors import ImageError
from tvm_mobilenet.models.families import Task
from tvm_mobilenet.records import Preprocessing

__all__ = [
    "decode_image",
    "default_preprocessing",
    "for_resolution",
    "load_image",
    "normalize",
    "square_pixels",
]

Pixels = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CENTRAL_FRACTION = 0.875
"""TF-Slim evaluates on the central 87.5 %, and timm's default `crop_pct` is the same."""
_HALF = (0.5, 0.5, 0.5)
"""TF-Slim's Inception preprocessing: values from -1 to 1. timm's V1 weights use it too."""


def default_preprocessing(resolution: int, task: Task = "classification") -> Preprocessing:
    """Return what TF-Slim feeds a MobileNet of this resolution.

    A detector and a segmenter see the whole picture, stretched to their square.
    """
    if task != "classification":
        return Preprocessing(
            resize=resolution, crop=resolution, mean=_HALF, std=_HALF, fit="stretch"
        )
    return Preprocessing(
        resize=round(resolution / _CENTRAL_FRACTION), crop=resolution, mean=_HALF, std=_HALF
    )


def for_resolution(preprocessing: Preprocessing, resolution: int) -> Preprocessing:
    """Scale `resize` and `crop` to another resolution, the share that is cut away unchanged."""
    if preprocessing.crop == resolution:
        return preprocessing
    resize = round(preprocessing.resize * resolution / preprocessing.crop)
    return preprocessing.model_copy(update={"resize": resize, "crop": resolution})


def load_image(path: Path | str, preprocessing: Preprocessing) -> Tensor:
    """Read a picture file as a model wants it.

    Shapes:
        (1, 3, crop, crop) f32, NCHW.

    Raises:
        ImageError: there is no such file, or Pillow cannot read it as a picture.
    """
    pixels = square_pixels(decode_image(path), preprocessing)
    return normalize(pixels[None], preprocessing)


def decode_image(path: Path | str) -> Image.Image:
    """Decode a picture file to RGB, turned the way its EXIF data says.

    Raises:
        ImageError: there is no such file, or Pillow cannot read it as a picture.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on, which cameras have, and refuses twice as many.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as err:
        raise ImageError(f"image {path}: there is no such file") from err
    except Image.DecompressionBombError as err:
        raise ImageError(f"image {path}: it has too many pixels to be safe to decode") from err
    except MemoryError as err:
        raise ImageError(f"image {path}: it does not fit into memory") from err
    # Pillow's decoders raise whatever a damaged file leads them into.
    except Exception as err:
        raise ImageError(
            f"image {path}: not a picture that can be read ({_reason(err, path)}); "
            "give a whole file of a format that Pillow knows, such as PNG or JPEG"
        ) from err


def _reason(err: Exception, path: Path) -> str:
    if isinstance(err, IsADirectoryError):
        return "it is a folder"
    text = " ".join(str(err).split()).replace(f" {str(path)!r}", "")
    return text or type(err).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return image.convert("RGB")


def square_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize the short side and cut the central square of that side, or stretch both sides to it.

    Shapes:
        (resize, resize, 3) u8; `normalize` cuts the rest.
    """
    width, height = image.size
    side = preprocessing.resize
    if preprocessing.fit == "stretch":
        stretched = image.resize((side, side), _RESAMPLING[preprocessing.interpolation])
        return np.asarray(stretched.convert("RGB"), dtype=np.uint8)
    scale = side / min(width, height)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    resized = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    square = resized.crop((left, top, left + side, top + side))
    return np.asarray(square.convert("RGB"), dtype=np.uint8)


def normalize(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """Cut the central `crop` x `crop`, and scale to what the model was trained on.

    Shapes:
        pixels (N, S, S, 3) u8, S at least `crop` -> (N, 3, crop, crop) f32, NCHW.
    """
    crop = preprocessing.crop
    top, left = (pixels.shape[1] - crop) // 2, (pixels.shape[2] - crop) // 2
    cut = pixels[:, top : top + crop, left : left + crop].astype(np.float32) / np.float32(255)
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (cut - mean) / std
    if preprocessing.channel_order == "BGR":
        scaled = scaled[..., ::-1]
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
