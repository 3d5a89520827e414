"""What an integer kernel has to compute: one frozen record per call, nothing about how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "RANGES",
    "ByteWorkload",
    "IntegerAddWorkload",
    "IntegerConvWorkload",
    "IntegerDtype",
    "IntegerMatmulWorkload",
    "IntegerPoolWorkload",
    "IntegerScaleWorkload",
    "IntegerTableWorkload",
    "IntegerWorkload",
    "QuantizeWorkload",
    "Requantize",
]

IntegerDtype = Literal["int8", "uint8"]

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True, kw_only=True)
class Requantize:
    """From float32 steps to 8 bits: rounded half to even, plus `zero_point`, within the bounds."""

    dtype: IntegerDtype
    zero_point: int
    low: int
    high: int
    may_overflow: bool = False
    """Steps may lie so far outside that they have to be clamped before they are converted. False
    is proven from the weights, for any input."""

    @property
    def is_full_range(self) -> bool:
        """Whether the bounds are those of the dtype."""
        return (self.low, self.high) == RANGES[self.dtype]

    def describe(self) -> str:
        """Return a short spelling, e.g. `uint8+3 clip(3,255)`."""
        bounds = "" if self.is_full_range else f" clip({self.low},{self.high})"
        return f"{self.dtype}{self.zero_point:+d}{bounds}"


@dataclass(frozen=True, kw_only=True)
class IntegerMatmulWorkload:
    """y (rows, columns) = requantize((x (rows, depth) @ w (depth, columns) + bias) * scale).

    Sums and bias are int32, `scale` is float32 for each column. A 1x1 convolution of stride 1 over
    NHWC and a dense layer are this. Without `requantize`, y is the float32 product.
    """

    rows: int
    depth: int
    columns: int
    dtype: IntegerDtype
    """Of x; w is int8."""
    requantize: Requantize | None

    @property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        return self.rows * self.depth * self.columns

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output."""
        item = 1 if self.requantize else 4
        x, w = self.rows * self.depth, self.depth * self.columns
        return x + w + item * self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class IntegerConvWorkload:
    """A convolution over NHWC, requantized as a matrix product is; what it pads with is `pad`.

    `groups` is 1 (dense) or `in_channels` with as many outputs (depthwise).
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right"""
    pad: int = 0
    """Value of the padding: the zero point of x."""
    groups: int = 1
    dtype: IntegerDtype
    """Of x; w is int8."""
    requantize: Requantize | None

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        space = self.height + self.padding[0] + self.padding[2] - self.kernel[0]
        return space // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        space = self.width + self.padding[1] + self.padding[3] - self.kernel[1]
        return space // self.stride[1] + 1

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel, as many outputs as inputs."""
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution that is a plain matrix product over the pixels."""
        plain = self.kernel == (1, 1) == self.stride and not any(self.padding)
        return plain and self.groups == 1

    @property
    def macs(self) -> int:
        """Multiply-adds of one call, those on padding included."""
        pixels = self.batch * self.out_height * self.out_width
        return pixels * self.out_channels * self.depth

    @property
    def depth(self) -> int:
        """Products that one output sums."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output."""
        x = self.batch * self.height * self.width * self.in_channels
        y = self.batch * self.out_height * self.out_width * self.out_channels
        return x + self.depth * self.out_channels + (1 if self.requantize else 4) * y


@dataclass(frozen=True, kw_only=True)
class IntegerPoolWorkload:
    """y (batch, channels) = requantize((sum of x over all pixels + bias) * scale)."""

    batch: int
    pixels: int
    channels: int
    bias: int
    scale: float
    """A float32 number."""
    dtype: IntegerDtype
    requantize: Requantize

    @property
    def macs(self) -> int:
        """A mean has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input and output."""
        return self.batch * self.channels * (self.pixels + 1)


@dataclass(frozen=True, kw_only=True)
class IntegerAddWorkload:
    """y = requantize((a - a_zero_point) * a_factor + (b - b_zero_point) * b_factor), flat."""

    elements: int
    a_dtype: IntegerDtype
    a_zero_point: int
    a_factor: float
    """A float32 number."""
    b_dtype: IntegerDtype
    b_zero_point: int
    b_factor: float
    """A float32 number."""
    requantize: Requantize

    @property
    def dtype(self) -> IntegerDtype:
        """Of a."""
        return self.a_dtype

    @property
    def macs(self) -> int:
        """A sum has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of inputs and output."""
        return 3 * self.elements


@dataclass(frozen=True, kw_only=True)
class QuantizeWorkload:
    """y (N, H, W, C) = requantize(x (N, C, H, W) / step): the model's float32 input."""

    batch: int
    channels: int
    pixels: int
    step: float
    """A float32 number."""
    requantize: Requantize

    @property
    def dtype(self) -> IntegerDtype:
        """Of y."""
        return self.requantize.dtype

    @property
    def macs(self) -> int:
        """A division has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input and output."""
        return math.prod((5, self.batch, self.channels, self.pixels))


@dataclass(frozen=True, kw_only=True)
class IntegerTableWorkload:
    """y = table[x], element by element; the table is an argument of 256 bytes."""

    elements: int
    x_dtype: IntegerDtype
    y_dtype: IntegerDtype

    @property
    def dtype(self) -> str:
        """Of x."""
        return self.x_dtype

    @property
    def macs(self) -> int:
        """A table has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input, table and output."""
        return 2 * self.elements + 256


@dataclass(frozen=True, kw_only=True)
class IntegerScaleWorkload:
    """y = requantize((x - x_zero_point) * (gate - gate_zero_point) * factor).

    x and y (batch, pixels, channels), gate (batch, channels).
    """

    batch: int
    pixels: int
    channels: int
    x_dtype: IntegerDtype
    x_zero_point: int
    gate_dtype: IntegerDtype
    gate_zero_point: int
    factor: float
    """A float32 number."""
    requantize: Requantize

    @property
    def dtype(self) -> str:
        """Of x."""
        return self.x_dtype

    @property
    def macs(self) -> int:
        """A product has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input, gate and output."""
        return self.batch * self.channels * (2 * self.pixels + 1)


IntegerWorkload = (
    IntegerMatmulWorkload
    | IntegerConvWorkload
    | IntegerPoolWorkload
    | IntegerAddWorkload
    | QuantizeWorkload
)

ByteWorkload = IntegerTableWorkload | IntegerScaleWorkload
"""What no search changes."""
