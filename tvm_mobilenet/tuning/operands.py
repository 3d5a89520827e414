"""What a kernel of a search reads, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["Array", "Operands"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Everything that a workload reads, as a model holds it: nothing is packed."""

    x: Array
    weights: Array | None = None
    """(depth, columns) of a product, (channels out, channels in, kH, kW) of a convolution; of
    integers (channels out, kH, kW, channels in)."""
    bias: Array | None = None
    scale: Array | None = None
    """Of integer sums, one for each column."""
    residual: Array | None = None
    """What is added: to the result, or, of two integer tensors, the second."""
    gate: Array | None = None
    """(images, depth), what the channels of each image's rows are multiplied by."""
    first: Operands | None = None
    """Of a pair: what its depthwise convolution reads; `x` is then empty."""
    stages: tuple[Operands, ...] = ()
    """Of a cascade: what each of its convolutions reads, `x` of the first alone."""
