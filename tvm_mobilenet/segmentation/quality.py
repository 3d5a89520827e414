"""How good masks are: mean intersection over union."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["IGNORED", "mean_iou"]

IGNORED = 255
"""The value of pixels that are of no class, as on the edges of Pascal VOC's objects."""


def mean_iou(labels: npt.NDArray[Any], found: npt.NDArray[Any], classes: int) -> float:
    """Return the mean intersection over union, 0 to 1, of the classes that occur in either.

    Computed by scikit-learn over all pixels of all masks, as Pascal VOC does (Everingham et al.
    2010, section 4.1.3). Pixels whose label is `IGNORED` do not count.

    Shapes:
        labels and found: any, the same.
    """
    from sklearn.metrics import confusion_matrix  # takes a second to import

    counted = labels != IGNORED
    matrix = confusion_matrix(labels[counted], found[counted], labels=np.arange(classes))
    both = np.diag(matrix)
    either = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    occurs = either > 0
    return float((both[occurs] / either[occurs]).mean()) if occurs.any() else 0.0
