"""Pictures to masks, with the preprocessing that the artifact carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.files import new_file
from tvm_mobilenet.inputs import image_input, picture_batches
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.models.preprocess import decode_image, normalize, square_pixels
from tvm_mobilenet.protocols import Device
from tvm_mobilenet.segmentation.masks import MAX_CLASSES, Mask, mask_picture, overlay

__all__ = ["ClassShare", "Segmentation", "segment", "segmentation_classes"]


@dataclass(frozen=True, slots=True)
class ClassShare:
    """One class that is somewhere on a picture."""

    label: str
    """The class's name, or `class 17` where the model has no names."""
    index: int
    """Its place among the model's outputs, and its value in the mask."""
    share: float
    """Of the picture's pixels, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """What a model sees where in one picture."""

    image: str
    mask: str
    """Path of the mask: a PNG of the picture's size, with the class of each pixel as its value."""
    overlay: str
    """Path of the picture with the classes' colours laid over it."""
    classes: tuple[ClassShare, ...]
    """Those that are on the picture, the largest first."""
    is_random: bool
    """True where the model's weights are random numbers: the classes mean nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def segment(
    path: Path | str,
    images: Sequence[Path | str],
    *,
    out: Path | str = ".",
    threads: int | None = None,
    device: Device | None = None,
    cpus: Sequence[int] = (),
) -> list[Segmentation]:
    """Segment picture files with a compiled model; write a mask and an overlay for each.

    A picture is stretched to the model's input, and its mask back to the picture's size.

    Args:
        path: the artifact folder.
        images: picture files, any format that Pillow reads.
        out: the folder for `NAME.mask.png` and `NAME.overlay.png`; made if it is missing.
        threads: how many threads compute; None for one on each fast core.
        device: where the model runs; None for this machine. Pictures are prepared here.
        cpus: the processors to compute on; empty for the device's choice.

    Raises:
        ArtifactError: the artifact is damaged or for another machine.
        SpecError: the model takes no pictures, or its output is not scores for every pixel.
        UsageError: two pictures would be written to one file.
        ImageError: a file is not a picture.
        OutputError: `out` cannot be written.
        DeviceError: the board cannot be reached, or has gone in the middle.
    """
    device = device or LocalDevice()
    artifact = open_artifact(path, machine=device.machine, runnable=device.machine is not None)
    manifest = artifact.manifest
    _, preprocessing = image_input(manifest)
    segmentation_classes(manifest)
    paths = [Path(image) for image in images]
    targets = _targets(paths, Path(out))
    # All of them first: a file that is no picture ends the request before anything is written.
    pictures = [decode_image(image) for image in paths]
    results: list[Segmentation] = []
    with device.open(artifact, threads, cpus) as executor:
        prepared = (
            normalize(square_pixels(picture, preprocessing)[None], preprocessing)[0]
            for picture in pictures
        )
        for inputs, count in picture_batches(manifest, prepared):
            (scores,) = executor.run(inputs).values()
            for best in scores[:count].argmax(axis=1).astype(np.uint8):
                index = len(results)
                mask = _of_size(best, pictures[index].size)
                mask_path, overlay_path = targets[index]
                _save(mask_picture(mask), mask_path)
                _save(overlay(pictures[index], mask), overlay_path)
                results.append(
                    Segmentation(
                        image=str(paths[index]),
                        mask=str(mask_path),
                        overlay=str(overlay_path),
                        classes=_shares(mask, manifest),
                        is_random=manifest.model.is_random,
                    )
                )
    return results


def segmentation_classes(manifest: Manifest) -> int:
    """Return how many classes a model tells apart at every pixel.

    Raises:
        SpecError: its output is not scores for every pixel of a whole picture.
    """
    _, preprocessing = image_input(manifest)
    name, shapes = manifest.model.name, [info.shape for info in manifest.outputs]
    side = preprocessing.crop
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][2:] != (side, side):
        raise SpecError(
            f"model {name}: its outputs are {', '.join(map(str, shapes))}, not a score for each "
            f"class at {side} x {side} pixels; it cannot segment"
        )
    if preprocessing.fit != "stretch":
        raise SpecError(
            f"model {name}: its pictures are cut to their middle, which leaves the rest without a "
            "class; compile weights that were trained on whole pictures"
        )
    if shapes[0][1] > MAX_CLASSES:
        raise SpecError(
            f"model {name}: it tells {shapes[0][1]} classes apart, but a mask holds {MAX_CLASSES}"
        )
    return shapes[0][1]


def _targets(paths: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise UsageError(
                f"image {path}: its mask would take the place of that of {other}; segment them "
                "into two folders"
            )
    return [(out / f"{path.stem}.mask.png", out / f"{path.stem}.overlay.png") for path in paths]


def _of_size(mask: Mask, size: tuple[int, int]) -> Mask:
    stretched = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    return np.asarray(stretched, np.uint8)


def _save(picture: Image.Image, path: Path) -> None:
    with new_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _shares(mask: Mask, manifest: Manifest) -> tuple[ClassShare, ...]:
    names = manifest.class_names
    counts = np.bincount(mask.ravel(), minlength=1)
    order = np.argsort(-counts, kind="stable")
    return tuple(
        ClassShare(
            names[index] if names else f"class {index}", index, float(counts[index] / mask.size)
        )
        for index in order.tolist()
        if counts[index]
    )
