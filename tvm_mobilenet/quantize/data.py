"""Inputs to calibrate with: pictures of a folder, the digits, or random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.datasets import DIGITS, load_dataset
from tvm_mobilenet.errors import InputFileError, SpecError
from tvm_mobilenet.inputs import Inputs, seeded
from tvm_mobilenet.models.preprocess import load_image
from tvm_mobilenet.records import ExportedModel

__all__ = ["RANDOM", "calibration_inputs"]

RANDOM = "random"


def calibration_inputs(
    exported: ExportedModel, calibration: str | Path, count: int, seed: int
) -> list[Inputs]:
    """Return up to `count` inputs of the model.

    Args:
        exported: the model; pictures need its preprocessing.
        calibration: `random`, `digits` (those to train on, not the held-out ones), or a folder of
            pictures, in sub-folders or not, of which some are drawn.
        count: of pictures; as many inputs as these fill, of the model's batch size.
        seed: of the draw.

    Raises:
        InputFileError, ImageError: the folder is not there or holds no pictures.
        SpecError: the model does not say how pictures are prepared for it.
    """
    if str(calibration) == RANDOM:
        return list(seeded(exported, count, seed))
    files = [] if str(calibration) == DIGITS else _pictures_in(Path(calibration))
    preprocessing = exported.preprocessing
    if preprocessing is None or len(exported.inputs) != 1:
        raise SpecError(
            f"calibration {calibration}: model {exported.origin.name} does not say how pictures "
            f"are prepared for it; use {RANDOM!r}, or quantize a model of tvm-mobilenet's"
        )
    info = exported.inputs[0]
    rng = np.random.default_rng(seed)
    if str(calibration) == DIGITS:
        train = load_dataset(
            DIGITS, resolution=preprocessing.crop, preprocessing=preprocessing
        ).train
        chosen = rng.permutation(len(train))[:count]
        pictures = list(train.inputs(chosen))
    else:
        order = rng.permutation(len(files))[:count]
        pictures = [load_image(files[index], preprocessing)[0] for index in order]
    return [{info.name: batch} for batch in _batches(pictures, info.shape[0])]


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputFileError(
            f"calibration {folder}: there is no such folder; give a folder of pictures, "
            f"{DIGITS!r} or {RANDOM!r}"
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:])
    )
    if not files:
        raise InputFileError(f"calibration {folder}: no picture in it; give a folder of pictures")
    return files


def _batches(pictures: Sequence[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """Group pictures; the last group is filled up with copies."""
    for start in range(0, len(pictures), size):
        group = list(pictures[start : start + size])
        group += [group[-1]] * (size - len(group))
        yield np.ascontiguousarray(np.stack(group), np.float32)
