"""A detector's last node in Relax: an opaque call that the kernel selection knows.

Relax has no operator for it, and its pieces one by one (`NonMaxSuppression` among them) would have
shapes that are not known at compile time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import StringImm, relax
from tvm_mobilenet.detection.suppression import Suppression
from tvm_mobilenet.errors import FrontendError
from tvm_mobilenet.frontend.dataflow import constant_array, is_call, static_shape

__all__ = ["DetectionsCall", "convert_detections", "read_detections"]

_NAME = "tvm_mobilenet.ssd_detections"


@dataclass(frozen=True)
class DetectionsCall:
    """What the call computes from what."""

    offsets: Any
    logits: Any
    defaults: np.ndarray
    suppression: Suppression


def convert_detections(builder: Any, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """SsdDetections(offsets, logits, defaults) -> a call of four results.

    Raises:
        FrontendError: the batch is not 1, or the default boxes are not constant.
    """
    del builder
    offsets, logits, defaults = inputs[:3]
    if static_shape(logits)[0] != 1:
        raise FrontendError(
            f"detections of a batch of {static_shape(logits)[0]}: one picture at a time can be "
            "compiled; export it with batch 1"
        )
    if constant_array(defaults) is None:
        raise FrontendError("detections: the default boxes are not constant; export them so")
    kept = int(attrs["detections"][0])
    limits = [str(float(attrs[name][0])) for name in ("score_threshold", "iou_threshold")]
    types = [
        relax.TensorType((1, kept, 4), "float32"),
        relax.TensorType((1, kept), "float32"),
        relax.TensorType((1, kept), "int32"),
        relax.TensorType((1,), "int32"),
    ]
    return relax.call_pure_packed(
        _NAME,
        offsets,
        logits,
        defaults,
        StringImm(" ".join([*limits, str(kept)])),
        ty_args=relax.TupleType(types),
    )


def read_detections(value: Any) -> DetectionsCall | None:
    """Return what a call of detections computes; None for any other value."""
    if not is_call(value, "call_pure_packed"):
        return None
    name, offsets, logits, defaults, limits = value.args
    if str(name.global_symbol) != _NAME:
        return None
    score, iou, kept = str(limits.value).split()
    boxes = constant_array(defaults)
    assert boxes is not None
    suppression = Suppression(
        score_threshold=float(score), iou_threshold=float(iou), detections=int(kept)
    )
    return DetectionsCall(offsets, logits, boxes, suppression)
