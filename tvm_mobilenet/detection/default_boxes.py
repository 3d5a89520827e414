"""The default boxes of SSD, which its outputs are relative to. Imports no torch.

Reference: Liu et al. 2016 (arXiv:1512.02325), section 2.2; scales and shapes as in torchvision's
`DefaultBoxGenerator` and, with three boxes on the finest map, in TensorFlow's
`ssd_anchor_generator` (`reduce_boxes_in_lowest_layer`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["ASPECT_RATIOS", "default_boxes"]

_SMALLEST, _LARGEST = 0.2, 0.95
"""Scale of the boxes of the finest and of the coarsest map, as shares of the picture's side."""
ASPECT_RATIOS = (2.0, 3.0)
"""Of the boxes beside the two square ones, each upright and lying."""
_FINEST = 0.1
"""Side of the only square box of a finest map with three boxes, as TensorFlow has it."""


def default_boxes(map_sizes: Sequence[int], per_cell: Sequence[int]) -> npt.NDArray[np.float32]:
    """Lay out the default boxes, map by map, row by row, cell by cell.

    Args:
        map_sizes: side of each square feature map, finest first.
        per_cell: boxes in each cell of each map: 6, or 3 for the finest.

    Shapes:
        (boxes, 4) f32: centre x, centre y, width, height as shares of the picture's side.
    """
    count = len(map_sizes)
    step = (_LARGEST - _SMALLEST) / max(count - 1, 1)
    scales = [_SMALLEST + step * index for index in range(count)] + [1.0]
    boxes = []
    for index, (size, boxes_in_cell) in enumerate(zip(map_sizes, per_cell, strict=True)):
        shapes = _shapes(scales[index], scales[index + 1], boxes_in_cell)
        centres = (np.arange(size, dtype=np.float64) + 0.5) / size
        y, x = np.meshgrid(centres, centres, indexing="ij")
        cells = np.stack([x.ravel(), y.ravel()], axis=1)
        placed = np.concatenate(
            [np.repeat(cells, len(shapes), axis=0), np.tile(shapes, (len(cells), 1))], axis=1
        )
        boxes.append(placed)
    return np.concatenate(boxes).astype(np.float32)


def _shapes(scale: float, following: float, count: int) -> npt.NDArray[np.float64]:
    if count == 3:
        root = math.sqrt(2.0)
        shapes = [(_FINEST, _FINEST), (scale * root, scale / root), (scale / root, scale * root)]
    else:
        between = math.sqrt(scale * following)
        shapes = [(scale, scale), (between, between)]
        for ratio in ASPECT_RATIOS:
            width, height = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(width, height), (height, width)]
    clipped: npt.NDArray[np.float64] = np.clip(np.asarray(shapes), 0.0, 1.0)
    return clipped
