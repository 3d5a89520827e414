"""Labelled pictures to train on and to verify with. Imports no torch.

A data set is `digits`, the 1,797 scans of handwritten digits that come inside scikit-learn, or a
folder with one sub-folder of pictures for each class. Either is split once into a training and a
held-out part; the split depends on `split_seed` alone, so that training, verification and the
summary of a run speak of the same pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.models.preprocess import (
    decode_image,
    default_preprocessing,
    normalize,
    square_pixels,
)
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.records import ClassList, Preprocessing

__all__ = ["DIGITS", "DIGITS_MODEL", "Dataset", "Split", "digits_preprocessing", "load_dataset"]

DIGITS = "digits"
"""The name of the data set inside scikit-learn."""
DIGITS_MODEL = "mobilenet_v1_0.25_32"
"""What `run` trains when nothing is named: a quarter of the width, on upscaled 8x8 scans."""

HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0
_MAX_CACHED_BYTES = 1 << 30
_DIGITS_WHITE = 16
"""Scikit-learn's scans count the black pixels of a 4x4 block: 0 to 16."""


@dataclass(frozen=True)
class Split:
    """Some of a data set's pictures with their labels; decoded when they are asked for."""

    labels: npt.NDArray[np.int64]
    preprocessing: Preprocessing
    sources: Sequence[Path | Image.Image]
    _cache: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.labels)

    def pixels(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Decode some pictures, resized and square but neither cropped nor normalised.

        Shapes:
            (N, resize, resize, 3) u8.
        """
        return np.stack([self._one(int(index)) for index in indices])

    def inputs(
        self, indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return some pictures, or all of them, as the model wants them.

        Shapes:
            (N, 3, crop, crop) f32, NCHW.
        """
        chosen = range(len(self)) if indices is None else indices
        return normalize(self.pixels(chosen), self.preprocessing)

    def _one(self, index: int) -> npt.NDArray[np.uint8]:
        if index in self._cache:
            return self._cache[index]
        source = self.sources[index]
        image = source if isinstance(source, Image.Image) else decode_image(source)
        pixels = square_pixels(image, self.preprocessing)
        # Decoding costs more than training on a small picture; a large set is decoded each time.
        if len(self) * pixels.nbytes <= _MAX_CACHED_BYTES:
            self._cache[index] = pixels
        return pixels


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and held-out pictures of one data set."""

    name: str
    """`digits`, or the folder's path."""
    class_names: ClassList
    preprocessing: Preprocessing
    train: Split
    held_out: Split
    fingerprint: str
    """Hash over the file names, sizes and labels of both parts; for `digits`, over the scans."""
    mirrored: bool
    """True where a picture and its mirror image are of the same class."""


def digits_preprocessing(resolution: int) -> Preprocessing:
    """Return how a scan becomes an input: blown up to the model's resolution, nothing cut away."""
    return default_preprocessing(resolution).model_copy(update={"resize": resolution})


def load_dataset(
    data: str | Path,
    *,
    resolution: int,
    preprocessing: Preprocessing | None = None,
    split_seed: int = SPLIT_SEED,
    progress: Progress | None = None,
) -> Dataset:
    """Open a data set and split it: four fifths to train on, one fifth held out, class by class.

    Args:
        data: `digits`, or a folder with one sub-folder for each class. A folder of that name
            can be given as `./digits`.
        resolution: of the model that will see the pictures.
        preprocessing: to use instead of the data set's own.
        split_seed: decides which pictures are held out.
        progress: told of every picture file that is looked at.

    Raises:
        InputFileError: there is no such folder, or it holds fewer than two classes.
        ImageError: a file in it is not a picture.
    """
    if str(data) == DIGITS:
        return _digits(preprocessing or digits_preprocessing(resolution), split_seed)
    chosen = preprocessing or default_preprocessing(resolution)
    return _folder(Path(data), chosen, split_seed, progress or NoProgress())


def _digits(preprocessing: Preprocessing, split_seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # takes a second to import

    scans, labels = load_digits(return_X_y=True)
    greys = np.round(scans.reshape(-1, 8, 8) * (255 / _DIGITS_WHITE)).astype(np.uint8)
    return _split(
        name=DIGITS,
        class_names=tuple(str(digit) for digit in range(10)),
        preprocessing=preprocessing,
        sources=[Image.fromarray(grey).convert("RGB") for grey in greys],
        labels=labels.astype(np.int64),
        fingerprint=hashlib.sha256(greys.tobytes() + labels.astype("<i8").tobytes()).hexdigest(),
        mirrored=False,
        split_seed=split_seed,
    )


def _folder(
    folder: Path, preprocessing: Preprocessing, split_seed: int, progress: Progress
) -> Dataset:
    if not folder.is_dir():
        raise InputFileError(
            f"data {str(folder)!r}: there is no such folder; give {DIGITS!r}, or a folder with "
            "one sub-folder of pictures for each class"
        )
    classes = sorted(path for path in folder.iterdir() if _is_visible(path) and path.is_dir())
    if len(classes) < 2:
        raise InputFileError(
            f"data {str(folder)!r}: found {len(classes)} sub-folders, but a class is a sub-folder "
            "and at least 2 are needed"
        )
    sources: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(classes):
        files = sorted(p for p in class_folder.rglob("*") if _is_visible(p) and p.is_file())
        if len(files) < 2:
            raise InputFileError(
                f"data {str(class_folder)!r}: found {len(files)} pictures, but one to train on "
                "and one to hold out are needed"
            )
        sources += files
        labels += [label] * len(files)
    _look_at_each(sources, progress)
    listing = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, label)
        for path, label in zip(sources, labels, strict=True)
    ]
    return _split(
        name=str(folder),
        class_names=tuple(path.name for path in classes),
        preprocessing=preprocessing,
        sources=sources,
        labels=np.asarray(labels, np.int64),
        fingerprint=hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        mirrored=True,
        split_seed=split_seed,
    )


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _look_at_each(sources: Sequence[Path], progress: Progress) -> None:
    """Decode every picture once, so that a damaged one ends the run before hours of training."""
    progress.start("checking the pictures", len(sources))
    for path in sources:
        decode_image(path)
        progress.advance()
    progress.done()


def _split(
    *,
    name: str,
    class_names: ClassList,
    preprocessing: Preprocessing,
    sources: Sequence[Path | Image.Image],
    labels: npt.NDArray[np.int64],
    fingerprint: str,
    mirrored: bool,
    split_seed: int,
) -> Dataset:
    rng = np.random.default_rng(split_seed)
    train: list[int] = []
    held_out: list[int] = []
    for label in range(len(class_names)):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(HELD_OUT_SHARE * len(members)))
        held_out += sorted(members[:count].tolist())
        train += sorted(members[count:].tolist())

    def part(indices: list[int]) -> Split:
        return Split(labels[indices], preprocessing, [sources[index] for index in indices])

    return Dataset(
        name=name,
        class_names=class_names,
        preprocessing=preprocessing,
        train=part(train),
        held_out=part(held_out),
        fingerprint=fingerprint,
        mirrored=mirrored,
    )
