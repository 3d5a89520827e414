"""Pictures to class names, with the preprocessing that the artifact carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.inputs import image_input, image_inputs
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.protocols import Device

__all__ = ["Guess", "Prediction", "classify"]


@dataclass(frozen=True, slots=True)
class Guess:
    """One class that a picture may show."""

    label: str
    """The class's name, or `class 17` where the model has no names."""
    index: int
    """Its place among the model's outputs."""
    probability: float
    """Softmax over all classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model sees in one picture, most likely class first."""

    image: str
    guesses: tuple[Guess, ...]
    is_random: bool
    """True where the model's weights are random numbers: the guesses mean nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def classify(
    path: Path | str,
    images: Sequence[Path | str],
    *,
    top: int = 5,
    threads: int | None = None,
    device: Device | None = None,
    cpus: Sequence[int] = (),
) -> list[Prediction]:
    """Classify picture files with a compiled model.

    Args:
        path: the artifact folder.
        images: picture files, any format that Pillow reads.
        top: how many classes to name for each.
        threads: how many threads compute; None for one on each fast core.
        device: where the model runs; None for this machine. Pictures are prepared here.
        cpus: the processors to compute on; empty for the device's choice.

    Raises:
        ArtifactError: the artifact is damaged or for another machine.
        SpecError: the model takes no pictures, or its output is not one score for each class.
        ImageError: a file is not a picture.
        DeviceError: the board cannot be reached, or has gone in the middle.
    """
    device = device or LocalDevice()
    artifact = open_artifact(path, machine=device.machine, runnable=device.machine is not None)
    manifest = artifact.manifest
    if top < 1:
        raise SpecError(f"top {top}: give 1 or more")
    image_input(manifest)
    classes = _class_count(manifest)
    paths = [Path(image) for image in images]
    predictions: list[Prediction] = []
    with device.open(artifact, threads, cpus) as executor:
        for inputs, count in image_inputs(manifest, paths):
            (scores,) = executor.run(inputs).values()
            for row in scores.reshape(-1, classes)[:count]:
                image = paths[len(predictions)]
                predictions.append(
                    Prediction(
                        image=str(image),
                        guesses=_best(row, top, manifest),
                        is_random=manifest.model.is_random,
                    )
                )
    return predictions


def _class_count(manifest: Manifest) -> int:
    shapes = [info.shape for info in manifest.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise SpecError(
            f"model {manifest.model.name}: its outputs are {', '.join(map(str, shapes))}, not one "
            "score for each class; it cannot classify"
        )
    return shapes[0][1]


def _best(scores: npt.NDArray[Any], top: int, manifest: Manifest) -> tuple[Guess, ...]:
    exponents = np.exp(scores.astype(np.float64) - scores.max())
    probabilities = exponents / exponents.sum()
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    names = manifest.class_names
    return tuple(
        Guess(names[index] if names else f"class {index}", index, float(probabilities[index]))
        for index in order
    )
