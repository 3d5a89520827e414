"""With labels: how often PyTorch, ONNX Runtime and the compiled model are right, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.manifest import Manifest

__all__ = ["AccuracyReport", "LabelledFiles", "compare_accuracy", "list_pictures"]

COMPILED = "compiled"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """How many of the labelled pictures each engine got right, and where they differ."""

    images: int
    correct: Mapping[str, int]
    """Number of right answers, by engine: `compiled`, `onnxruntime`, `pytorch`."""
    disagreements: Mapping[str, tuple[str, ...]]
    """By reference: the pictures on which the compiled model gives another class than it."""

    def accuracy(self, engine: str) -> float:
        """Return the share of right answers of one engine."""
        return self.correct[engine] / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "images": self.images,
            "correct": dict(self.correct),
            "accuracy": {engine: self.accuracy(engine) for engine in self.correct},
            "disagreements": {name: list(found) for name, found in self.disagreements.items()},
        }


def compare_accuracy(
    names: Sequence[str],
    labels: npt.NDArray[np.int64],
    scores: Mapping[str, npt.NDArray[Any]],
) -> AccuracyReport:
    """Compare the best classes of several engines with the labels and with each other.

    Args:
        names: of the pictures, for the report.
        labels: the right class of each, (N,).
        scores: by engine, (N, classes); `compiled` is the one that others are compared with.
    """
    best = {engine: values.argmax(axis=1) for engine, values in scores.items()}
    ours = best[COMPILED]
    return AccuracyReport(
        images=len(labels),
        correct={engine: int((found == labels).sum()) for engine, found in best.items()},
        disagreements={
            engine: tuple(names[index] for index in np.flatnonzero(found != ours).tolist())
            for engine, found in best.items()
            if engine != COMPILED
        },
    )


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Pictures to verify with; `labels` is None where nobody said what is on them."""

    names: tuple[str, ...]
    sources: tuple[Path | Image.Image, ...]
    labels: npt.NDArray[np.int64] | None


def list_pictures(folder: Path, manifest: Manifest) -> LabelledFiles:
    """List a folder of pictures: labelled if they lie in one sub-folder a class.

    Raises:
        InputFileError: no such folder, nothing in it, or a sub-folder that is no class.
    """
    if not folder.is_dir():
        raise InputFileError(f"images {folder}: there is no such folder; give a folder of pictures")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = [path for path in entries if path.is_dir()]
    if not classes:
        files = tuple(entries)
        labels = None
    else:
        index_of = _class_indices([path.name for path in classes], folder, manifest)
        labelled = [(file, index_of[path.name]) for path in classes for file in _files(path)]
        files = tuple(file for file, _ in labelled)
        labels = np.asarray([label for _, label in labelled], np.int64)
    if not files:
        raise InputFileError(f"images {folder}: no picture in it; give a folder of pictures")
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    return LabelledFiles(names, files, labels)


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))


def _class_indices(names: list[str], folder: Path, manifest: Manifest) -> dict[str, int]:
    known = manifest.class_names
    if known is None:
        classes = manifest.model.num_classes
        if classes is not None and len(names) > classes:
            raise InputFileError(
                f"images {folder}: {len(names)} sub-folders, but {manifest.model.name} tells "
                f"{classes} classes apart; give pictures of its classes"
            )
        return {name: index for index, name in enumerate(names)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputFileError(
            f"images {folder}: sub-folder {unknown[0]!r} is no class of {manifest.model.name} "
            f"({', '.join(known[:5])}{', ...' if len(known) > 5 else ''}); name the sub-folders "
            "after the classes"
        )
    return {name: known.index(name) for name in names}
