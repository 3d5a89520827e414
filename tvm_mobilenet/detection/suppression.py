"""From a detector's outputs to its detections: decoding, thresholds, non-maximum suppression.

In numpy, and plain rather than fast: what PyTorch's outputs are judged by, and what the compiled
kernel and the exported file are tested against.

Reference: Liu et al. 2016 (arXiv:1512.02325), section 2.2; box coder and clipping as torchvision's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "CENTRE_SCALE",
    "MAX_SIZE_LOGARITHM",
    "SIZE_SCALE",
    "Detections",
    "Suppression",
    "decode_boxes",
    "overlap",
    "suppress",
]

Floats = npt.NDArray[np.float32]

CENTRE_SCALE, SIZE_SCALE = 0.1, 0.2
"""Variances of the box coder: offsets are trained in these units."""
MAX_SIZE_LOGARITHM = math.log(1000 / 16)
"""Largest growth of a default box, as torchvision's `BoxCoder` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """What becomes a detection."""

    score_threshold: float
    """Scores above it are candidates."""
    iou_threshold: float
    """A candidate that overlaps a better one of its class by more is suppressed."""
    detections: int
    """The best so many are kept, whatever their class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """What a detector found in one picture, best first.

    Shapes:
        boxes (count, 4) f32, left, top, right, bottom as shares of the sides; scores (count,) f32;
        classes (count,) i32, counted from 0 without the background.
    """

    boxes: Floats
    scores: Floats
    classes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Count the detections."""
        return len(self.scores)


def decode_boxes(offsets: Floats, defaults: Floats) -> Floats:
    """Return the boxes that offsets to default boxes mean, clipped to the picture.

    Shapes:
        offsets (boxes, 4) f32, defaults (boxes, 4) f32 centre and size -> (boxes, 4) f32 corners.
    """
    centres = offsets[:, :2] * np.float32(CENTRE_SCALE) * defaults[:, 2:] + defaults[:, :2]
    growth = np.minimum(offsets[:, 2:] * np.float32(SIZE_SCALE), np.float32(MAX_SIZE_LOGARITHM))
    half = np.exp(growth) * defaults[:, 2:] * np.float32(0.5)
    corners: Floats = np.clip(np.concatenate([centres - half, centres + half], axis=1), 0, 1)
    return corners


def overlap(box: Floats, boxes: Floats) -> Floats:
    """Return intersection over union of one box with each of many; 0 where a box is empty.

    Shapes:
        box (4,) f32, boxes (n, 4) f32 -> (n,) f32
    """
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    sides = np.maximum(high - low, np.float32(0))
    shared = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - shared
    result: Floats = np.where(shared > 0, shared / np.where(union > 0, union, 1), 0)
    return result


def suppress(
    offsets: Floats, logits: Floats, defaults: Floats, suppression: Suppression
) -> Detections:
    """Return the detections of one picture: class-wise greedy suppression, the best kept.

    Of equal scores the lower class goes first, then the earlier default box.

    Shapes:
        offsets (boxes, 4) f32, logits (boxes, 1 + classes) f32, defaults (boxes, 4) f32
    """
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (exponents / exponents.sum(axis=1, keepdims=True))[:, 1:]
    boxes = decode_boxes(offsets, defaults)
    classes, places = np.nonzero(suppression.score_threshold < scores.T)
    found = scores[places, classes]
    order = np.argsort(-found, kind="stable")
    kept: list[int] = []
    kept_of_class: dict[int, list[int]] = {}
    for index in order.tolist():
        if len(kept) == suppression.detections:
            break
        rivals = kept_of_class.setdefault(int(classes[index]), [])
        box = boxes[places[index]]
        if rivals and (overlap(box, boxes[rivals]) > suppression.iou_threshold).any():
            continue
        kept.append(index)
        rivals.append(int(places[index]))
    return Detections(
        boxes=boxes[places[kept]],
        scores=found[kept].astype(np.float32),
        classes=classes[kept].astype(np.int32),
    )
