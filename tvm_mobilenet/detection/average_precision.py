"""Mean average precision as COCO defines it, computed by COCO's own evaluation.

Reference: Lin et al. 2014 (arXiv:1405.0312); pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.detection.suppression import Detections

__all__ = ["AveragePrecision", "TrueBoxes", "average_precision"]

_SIDE = 100.0
"""COCO sorts objects by area in pixels; shares of the sides are blown up to such a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueBoxes:
    """What is on a picture.

    Shapes:
        boxes (n, 4) f32, left, top, right, bottom as shares of the sides; classes (n,) i64.
    """

    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """How good detections are, 0 to 1."""

    mean: float
    """Over classes and overlaps from 0.5 to 0.95, COCO's first figure."""
    at_half: float
    """Over classes, at an overlap of 0.5."""


def average_precision(
    found: Sequence[Detections], true: Sequence[TrueBoxes], num_classes: int
) -> AveragePrecision:
    """Judge the detections of some pictures against what is on them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "images": [{"id": index} for index in range(len(true))],
        "categories": [{"id": index} for index in range(num_classes)],
        "annotations": [
            {
                "image_id": image,
                "category_id": int(label),
                "bbox": _corner_and_size(box),
                "area": float(np.prod(_corner_and_size(box)[2:])),
                "iscrowd": 0,
            }
            for image, picture in enumerate(true)
            for box, label in zip(picture.boxes, picture.classes, strict=True)
        ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], start=1):
        annotation["id"] = number
    results = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": _corner_and_size(box),
            "score": float(score),
        }
        for image, picture in enumerate(found)
        for box, score, label in zip(picture.boxes, picture.scores, picture.classes, strict=True)
    ]
    if not results:
        return AveragePrecision(mean=0.0, at_half=0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to standard output
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    mean, at_half = (max(0.0, float(value)) for value in evaluation.stats[:2])
    return AveragePrecision(mean=mean, at_half=at_half)


def _corner_and_size(box: npt.NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = (float(value) * _SIDE for value in box)
    return [left, top, right - left, bottom - top]
