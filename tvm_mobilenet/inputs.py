"""Input tensors for a compiled model: seeded ones to compare and time with, and from pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.models.preprocess import load_image, normalize
from tvm_mobilenet.records import ExportedModel, Preprocessing, TensorInfo

__all__ = [
    "Inputs",
    "checked_inputs",
    "image_input",
    "image_inputs",
    "in_onnx_layout",
    "picture_batches",
    "seeded",
]

Array = npt.NDArray[Any]
Inputs = dict[str, Array]
"""One array for each input of a model, by its name."""

_BLOBS = 6
"""Side of the grid of random colours that a smooth picture is blown up from."""


def seeded(manifest: Manifest | ExportedModel, count: int, seed: int = 0) -> Iterator[Inputs]:
    """Yield `count` reproducible inputs of the kind that the model is made for.

    Where the manifest says how pictures are prepared, every other one is noise, pixel by pixel, and
    every other one a smooth field of colours, as a photograph is; both go through the same
    normalisation as a picture. Other floating-point inputs are drawn from the standard normal
    distribution, integers evenly from 0 to 9.
    """
    for index in range(count):
        # A stream of its own for each: the first ten of a hundred are the ten of ten.
        rng = np.random.default_rng([seed, index])
        yield {
            info.name: _draw(info, manifest.preprocessing, rng, smooth=index % 2 == 1)
            for info in manifest.inputs
        }


def checked_inputs(known: Sequence[TensorInfo], inputs: Mapping[str, Array]) -> list[Array]:
    """Return the arrays of `inputs` in the model's order, contiguous, none of them too many.

    Raises:
        SpecError: an input is missing, left over, or of another shape or dtype.
    """
    names = [info.name for info in known]
    left_over = sorted(set(inputs) - set(names))
    if left_over:
        raise SpecError(f"input {left_over[0]!r}: the model takes {', '.join(names)}")
    arrays = []
    for info in known:
        if info.name not in inputs:
            raise SpecError(f"input {info.name!r}: missing; the model takes {', '.join(names)}")
        array = inputs[info.name]
        if array.shape != info.shape or array.dtype != np.dtype(info.dtype):
            raise SpecError(
                f"input {info.name!r}: {array.dtype} {array.shape} was given, the model takes "
                f"{info.dtype} {info.shape} ({info.layout})"
            )
        arrays.append(np.ascontiguousarray(array))
    return arrays


def _draw(
    info: TensorInfo, preprocessing: Preprocessing | None, rng: np.random.Generator, smooth: bool
) -> Array:
    if preprocessing is not None and _takes_pictures(info, preprocessing):
        pixels = np.stack([_picture(preprocessing.crop, rng, smooth) for _ in range(info.shape[0])])
        return _in_layout(normalize(pixels, preprocessing), info)
    dtype = np.dtype(info.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(info.shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, info.shape).astype(dtype)
    return rng.integers(0, 10, info.shape).astype(dtype)


def _picture(side: int, rng: np.random.Generator, smooth: bool) -> npt.NDArray[np.uint8]:
    if not smooth:
        return rng.integers(0, 256, (side, side, 3), np.uint8)
    grid = rng.integers(0, 256, (_BLOBS, _BLOBS, 3), np.uint8)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


def image_input(manifest: Manifest) -> tuple[TensorInfo, Preprocessing]:
    """Return the input that takes pictures, and how they are prepared for it.

    Raises:
        SpecError: the model takes no pictures, or the manifest does not say how.
    """
    if manifest.preprocessing is None:
        raise SpecError(
            f"model {manifest.model.name}: pictures were given, but its manifest does not say how "
            "to prepare them; compile a model of tvm-mobilenet's, or feed tensors from Python "
            "(tvm_mobilenet.executor.LocalExecutor)"
        )
    if len(manifest.inputs) != 1 or not _takes_pictures(manifest.inputs[0], manifest.preprocessing):
        found = ", ".join(f"{info.name} {info.shape}" for info in manifest.inputs)
        raise SpecError(
            f"model {manifest.model.name}: pictures were given, but its inputs are {found}, not "
            f"one picture of {manifest.preprocessing.crop} x {manifest.preprocessing.crop} pixels"
        )
    return manifest.inputs[0], manifest.preprocessing


def image_inputs(manifest: Manifest, paths: Sequence[Path]) -> Iterator[tuple[Inputs, int]]:
    """Yield the pictures in `paths` as inputs, and how many pictures are in each.

    Raises:
        SpecError: the model takes no pictures.
        ImageError: a file is not a picture.
    """
    _, preprocessing = image_input(manifest)
    return picture_batches(manifest, (load_image(path, preprocessing)[0] for path in paths))


def picture_batches(
    manifest: Manifest, pictures: Iterator[npt.NDArray[np.float32]]
) -> Iterator[tuple[Inputs, int]]:
    """Group prepared pictures, (3, crop, crop) each, into inputs of the model's batch size.

    The last one is filled up with copies; the number beside it counts the real pictures.
    """
    info, _ = image_input(manifest)
    batch = info.shape[0]
    group: list[npt.NDArray[np.float32]] = []

    def flush() -> tuple[Inputs, int]:
        count = len(group)
        group.extend([group[-1]] * (batch - count))
        return {info.name: _in_layout(np.stack(group), info)}, count

    for picture in pictures:
        group.append(picture)
        if len(group) == batch:
            yield flush()
            group = []
    if group:
        yield flush()


def _takes_pictures(info: TensorInfo, preprocessing: Preprocessing) -> bool:
    side = preprocessing.crop
    expected = (side, side, 3) if info.layout == "NHWC" else (3, side, side)
    return len(info.shape) == 4 and info.shape[1:] == expected and info.dtype == "float32"


def _in_layout(nchw: Array, info: TensorInfo) -> Array:
    moved = nchw.transpose(0, 2, 3, 1) if info.layout == "NHWC" else nchw
    return np.ascontiguousarray(moved)


def in_onnx_layout(array: Array, layout: str) -> Array:
    """Return a feature map in NCHW, the order that ONNX knows."""
    if layout == "NHWC" and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    return array
