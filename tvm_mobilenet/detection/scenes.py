"""Pictures to detect on, made on the spot: scikit-learn's digits at random places and sizes.

Scenes to train on and held-out ones are made of different scans, split as for classification, and
depend on nothing but the resolution.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mobilenet.datasets import DIGITS, Split, load_dataset
from tvm_mobilenet.detection.average_precision import TrueBoxes
from tvm_mobilenet.detection.suppression import overlap
from tvm_mobilenet.models.preprocess import default_preprocessing, normalize
from tvm_mobilenet.records import ClassList, Preprocessing

__all__ = ["SceneSet", "Scenes", "digit_scenes"]

_TRAIN_SCENES, _HELD_OUT_SCENES = 600, 150
_MOST_DIGITS = 3
_SMALLEST, _LARGEST = 0.25, 0.6
"""Side of a digit as a share of the picture's."""
_MOST_OVERLAP = 0.05
_TRIES = 20


@dataclass(frozen=True)
class Scenes:
    """Some pictures and what is on each.

    Shapes:
        pixels (N, side, side, 3) u8
    """

    pixels: npt.NDArray[np.uint8]
    true: tuple[TrueBoxes, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.true)

    def inputs(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return some pictures as the model wants them, (n, 3, side, side) f32."""
        return normalize(self.pixels[indices], self.preprocessing)


@dataclass(frozen=True)
class SceneSet:
    """Scenes to train on and scenes to judge on."""

    class_names: ClassList
    preprocessing: Preprocessing
    train: Scenes
    held_out: Scenes
    fingerprint: str
    """Hash over the pixels and the boxes."""


def digit_scenes(
    resolution: int, *, train: int = _TRAIN_SCENES, held_out: int = _HELD_OUT_SCENES
) -> SceneSet:
    """Make scenes of digits for a detector of a resolution."""
    preprocessing = default_preprocessing(resolution, "detection")
    digits = load_dataset(DIGITS, resolution=8)
    to_train = _scenes(digits.train, train, preprocessing, seed=0)
    to_judge = _scenes(digits.held_out, held_out, preprocessing, seed=1)
    hashed = hashlib.sha256()
    for part in (to_train, to_judge):
        hashed.update(part.pixels.tobytes())
        for picture in part.true:
            hashed.update(picture.boxes.tobytes() + picture.classes.tobytes())
    return SceneSet(digits.class_names, preprocessing, to_train, to_judge, hashed.hexdigest())


def _scenes(split: Split, count: int, preprocessing: Preprocessing, seed: int) -> Scenes:
    rng = np.random.default_rng(seed)
    drawn = [_scene(split, preprocessing.crop, rng) for _ in range(count)]
    return Scenes(
        np.stack([pixels for pixels, _ in drawn]), tuple(true for _, true in drawn), preprocessing
    )


def _scene(
    split: Split, side: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], TrueBoxes]:
    """Paste digits on a noisy ground; a box is the square that its scan covers."""
    canvas = rng.normal(rng.uniform(30, 90), 12, (side, side, 3)).clip(0, 255)
    boxes: list[npt.NDArray[np.float32]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, _MOST_DIGITS + 1))):
        index = int(rng.integers(len(split)))
        for _ in range(_TRIES):
            size = int(side * rng.uniform(_SMALLEST, _LARGEST))
            left, top = rng.integers(0, side - size + 1, 2)
            box = (np.asarray([left, top, left + size, top + size]) / side).astype(np.float32)
            if not boxes or overlap(box, np.stack(boxes)).max() <= _MOST_OVERLAP:
                break
        else:
            continue
        source = split.sources[index]
        assert isinstance(source, Image.Image)
        scan = np.asarray(source.convert("L").resize((size, size), Image.Resampling.BICUBIC))
        ink = scan[..., None].astype(np.float64) / 255
        tint = rng.uniform(150, 255, 3)
        under = canvas[top : top + size, left : left + size]
        canvas[top : top + size, left : left + size] = ink * tint + (1 - ink) * under
        boxes.append(box)
        labels.append(int(split.labels[index]))
    return canvas.astype(np.uint8), TrueBoxes(
        boxes=np.stack(boxes), classes=np.asarray(labels, np.int64)
    )
