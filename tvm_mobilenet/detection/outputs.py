"""A deployed detector's output tensors, read and compared. Imports neither torch nor TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.detection.onnx_function import OUTPUTS
from tvm_mobilenet.detection.suppression import Detections, overlap
from tvm_mobilenet.records import TensorInfo

__all__ = ["aligned", "as_outputs", "is_detector", "read_outputs"]

Array = npt.NDArray[Any]

_SAME_BOX = 0.5
"""Overlap from which on two detections of a class are taken for the same."""


def is_detector(outputs: Sequence[TensorInfo]) -> bool:
    """Tell whether a model's outputs are those of a detector."""
    return tuple(info.name for info in outputs) == OUTPUTS


def read_outputs(outputs: Mapping[str, Array]) -> Detections:
    """Return the detections in the output tensors of one picture."""
    count = int(outputs["count"][0])
    return Detections(
        boxes=outputs["boxes"][0, :count],
        scores=outputs["scores"][0, :count],
        classes=outputs["classes"][0, :count],
    )


def as_outputs(found: Detections, size: int) -> dict[str, Array]:
    """Return detections as the output tensors of a detector that keeps `size` of them."""
    boxes, scores = np.zeros((1, size, 4), np.float32), np.zeros((1, size), np.float32)
    classes = np.full((1, size), -1, np.int32)
    count = len(found)
    boxes[0, :count], scores[0, :count] = found.boxes, found.scores
    classes[0, :count] = found.classes
    return dict(zip(OUTPUTS, (boxes, scores, classes, np.asarray([count], np.int32)), strict=True))


def aligned(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], tolerance: float
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Bring two detectors' outputs into the same order, so that they can be compared one by one.

    Rounding may swap two detections of nearly equal scores, and at the end of the list decide which
    is the last that is kept. So each detection is put where its partner is: of its class, and the
    one that overlaps it most. One without a partner counts as a difference unless its score is
    within the tolerance of the last one kept, where it is left out on both sides.

    Args:
        ours: outputs of the compiled model.
        theirs: outputs of the reference, whose order is kept.
        tolerance: share of the highest score within which two scores are a tie.
    """
    found, expected = read_outputs(ours), read_outputs(theirs)
    size = theirs["scores"].shape[1]
    tie = tolerance * float(expected.scores.max(initial=0))
    partner = _partners(found, expected)
    last = max((float(each.scores[-1]) for each in (found, expected) if len(each)), default=0.0)
    rows: list[tuple[int, int]] = []
    for theirs_at, ours_at in enumerate(partner):
        if ours_at >= 0 or expected.scores[theirs_at] > last + tie:
            rows.append((ours_at, theirs_at))
    paired = set(partner)
    rows += [
        (index, -1)
        for index in range(len(found))
        if index not in paired and found.scores[index] > last + tie
    ]
    rows = rows[:size]
    return (
        as_outputs(_rows(found, [pair[0] for pair in rows]), size),
        as_outputs(_rows(expected, [pair[1] for pair in rows]), size),
    )


def _partners(found: Detections, expected: Detections) -> list[int]:
    """Return for each expected detection, best first, the place of its partner, or -1."""
    free = np.ones(len(found), bool)
    partners = []
    for box, label in zip(expected.boxes, expected.classes, strict=True):
        candidates = np.flatnonzero(free & (found.classes == label))
        shared = overlap(box, found.boxes[candidates])
        # An empty box overlaps nothing, not even itself.
        shared = np.where((found.boxes[candidates] == box).all(axis=1), 1, shared)
        best = int(shared.argmax()) if len(shared) else -1
        if best < 0 or shared[best] < _SAME_BOX:
            partners.append(-1)
            continue
        partners.append(int(candidates[best]))
        free[candidates[best]] = False
    return partners


def _rows(detections: Detections, places: Sequence[int]) -> Detections:
    """Return some detections; a place of -1 stands for none: an empty box of no class."""
    at = np.asarray(places, np.int64)
    is_there = at >= 0
    if not len(detections):
        detections = Detections(
            boxes=np.zeros((1, 4), np.float32),
            scores=np.zeros(1, np.float32),
            classes=np.full(1, -1, np.int32),
        )
    return Detections(
        boxes=np.where(is_there[:, None], detections.boxes[at], 0).astype(np.float32),
        scores=np.where(is_there, detections.scores[at], 0).astype(np.float32),
        classes=np.where(is_there, detections.classes[at], -1).astype(np.int32),
    )
