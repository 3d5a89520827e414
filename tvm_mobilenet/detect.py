"""Pictures to boxes and class names, with the preprocessing that the artifact carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.detection.drawing import draw_boxes
from tvm_mobilenet.detection.outputs import is_detector, read_outputs
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.files import new_file
from tvm_mobilenet.inputs import image_input, picture_batches
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.models.preprocess import decode_image, normalize, square_pixels
from tvm_mobilenet.protocols import Device
from tvm_mobilenet.records import Preprocessing

__all__ = ["DEFAULT_THRESHOLD", "DetectedObject", "DetectionResult", "detect"]

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedObject:
    """One object in a picture."""

    label: str
    """The class's name, or `class 17` where the model has no names."""
    index: int
    """The class's number, from 0, the background not counted."""
    score: float
    """Probability of the class, 0 to 1."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionResult:
    """What a detector found in a picture, best first."""

    image: str
    width: int
    """Of the picture, in pixels, turned as its EXIF data says."""
    height: int
    objects: tuple[DetectedObject, ...]
    drawing: str | None
    """Path of the picture with the boxes drawn on it."""
    is_random: bool
    """True where the model's weights are random numbers: the objects mean nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def detect(
    path: Path | str,
    image: Path | str,
    *,
    out: Path | str | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    threads: int | None = None,
    device: Device | None = None,
    cpus: Sequence[int] = (),
) -> DetectionResult:
    """Find objects in a picture with a compiled detector, and draw them.

    Args:
        path: the artifact folder.
        image: a picture file, any format that Pillow reads.
        out: where to draw the boxes, `.png` or `.jpg`; None for nowhere.
        threshold: objects of a score below it are left out, 0 to 1.
        threads: how many threads compute; None for one on each fast core.
        device: where the model runs; None for this machine. The picture is prepared here.
        cpus: the processors to compute on; empty for the device's choice.

    Raises:
        ArtifactError: the artifact is damaged or for another machine.
        SpecError: the model is no detector, or the threshold is no probability.
        UsageError: `out` is no kind of picture that is written.
        ImageError: the file is not a picture.
        OutputError: `out` cannot be written.
        DeviceError: the board cannot be reached, or has gone in the middle.
    """
    if not 0 <= threshold <= 1:
        raise SpecError(f"threshold {threshold}: a score is from 0 to 1")
    if out is not None and Path(out).suffix.lower() not in _FORMATS:
        raise UsageError(f"output {out}: a picture is drawn as one of {_ENDINGS}; name it so")
    device = device or LocalDevice()
    artifact = open_artifact(path, machine=device.machine, runnable=device.machine is not None)
    manifest = artifact.manifest
    if not is_detector(manifest.outputs):
        raise SpecError(
            f"model {manifest.model.name}: its outputs are "
            f"{', '.join(info.name for info in manifest.outputs)}, not those of a detector; "
            "compile one, such as ssdlite_mobilenet_v3_large_320"
        )
    _, preprocessing = image_input(manifest)
    picture = decode_image(image)
    pixels = square_pixels(picture, preprocessing)[None]
    inputs, _ = next(picture_batches(manifest, iter(normalize(pixels, preprocessing))))
    with device.open(artifact, threads, cpus) as executor:
        found = read_outputs(executor.run(inputs))
    left, top, width, height = _seen(picture, preprocessing)
    objects = tuple(
        DetectedObject(
            label=_name(manifest, int(label)),
            index=int(label),
            score=float(score),
            box=(
                left + width * float(box[0]),
                top + height * float(box[1]),
                left + width * float(box[2]),
                top + height * float(box[3]),
            ),
        )
        for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True)
        if score >= threshold
    )
    if out is not None:
        _draw(picture, objects, Path(out))
    return DetectionResult(
        image=str(image),
        width=picture.width,
        height=picture.height,
        objects=objects,
        drawing=None if out is None else str(out),
        is_random=manifest.model.is_random,
    )


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_ENDINGS = ", ".join(_FORMATS)


def _seen(picture: Image.Image, how: Preprocessing) -> tuple[float, float, float, float]:
    """Return left, top, width and height of what the model sees of a picture, in its pixels."""
    if how.fit == "stretch":
        return 0.0, 0.0, float(picture.width), float(picture.height)
    side = min(picture.size) * how.crop / how.resize
    return (picture.width - side) / 2, (picture.height - side) / 2, side, side


def _name(manifest: Manifest, label: int) -> str:
    names = manifest.class_names
    return names[label] if names else f"class {label}"


def _draw(picture: Image.Image, objects: Sequence[DetectedObject], out: Path) -> None:
    labels = [(f"{each.label} {each.score:.2f}", each.box, each.index) for each in objects]
    with new_file(out) as temporary:
        draw_boxes(picture, labels).save(temporary, format=_FORMATS[out.suffix.lower()])
