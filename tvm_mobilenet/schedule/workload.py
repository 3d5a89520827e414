"""What a kernel has to compute: one frozen record per call, nothing about how.

A workload together with a CPU description is all that a schedule is computed from, and the key
under which a search may store a better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tvm_mobilenet.schedule.integer.workload import ByteWorkload, IntegerWorkload

__all__ = [
    "CascadeWorkload",
    "ConvWorkload",
    "Epilogue",
    "FloatWorkload",
    "GatedWorkload",
    "JoinedWorkload",
    "MatmulWorkload",
    "PlanSource",
    "PoolWorkload",
    "ResizeMode",
    "ResizeWorkload",
    "SeparableWorkload",
    "TapsWorkload",
    "TunableWorkload",
    "Workload",
]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What is applied to each accumulator before it is stored, in this order."""

    bias: bool = False
    """Add a vector over the output channels."""
    residual: bool = False
    """Add a tensor of the output's shape."""
    activation: Literal["none", "hard-swish", "sigmoid"] = "none"
    """Multiply by clip(x / 6 + 1/2, 0, 1), or take 1 / (1 + exp(-x)). Hard-sigmoid is bounds alone:
    its factor and its shift are in the weights and the bias."""
    low: float = -math.inf
    """Lower bound of the activation: 0 for ReLU and ReLU6."""
    high: float = math.inf
    """Upper bound of the activation: 6 for ReLU6."""

    def describe(self) -> str:
        """Return a short spelling, e.g. `bias+clip(0,6)`."""
        parts = [name for name, on in (("bias", self.bias), ("residual", self.residual)) if on]
        if self.activation != "none":
            parts.append(self.activation)
        if self.low != -math.inf or self.high != math.inf:
            parts.append(f"clip({self.low:g},{self.high:g})")
        return "+".join(parts) or "none"


@dataclass(frozen=True, kw_only=True)
class MatmulWorkload:
    """y (rows, columns) = x (rows, depth) @ w (depth, columns), then the epilogue.

    A 1x1 convolution of stride 1 over NHWC (rows = N*H*W) and a dense layer (rows = N) are this.
    """

    rows: int
    depth: int
    columns: int
    epilogue: Epilogue = Epilogue()
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        return self.rows * self.depth * self.columns

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output."""
        elements = self.rows * (self.depth + self.columns) + self.depth * self.columns
        return _ITEM_BYTES[self.dtype] * elements


@dataclass(frozen=True, kw_only=True)
class ConvWorkload:
    """A two-dimensional convolution from `input_layout` to NHWC, then the epilogue.

    `groups` is 1 (dense) or `in_channels` with as many outputs (depthwise).
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right"""
    groups: int = 1
    input_layout: Literal["NHWC", "NCHW"] = "NHWC"
    epilogue: Epilogue = Epilogue()
    dtype: str = "float32"

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        span = (self.kernel[0] - 1) * self.dilation[0] + 1
        return (self.height + self.padding[0] + self.padding[2] - span) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        span = (self.kernel[1] - 1) * self.dilation[1] + 1
        return (self.width + self.padding[1] + self.padding[3] - span) // self.stride[1] + 1

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel, as many outputs as inputs."""
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution that is a plain matrix product over the pixels."""
        return (
            self.kernel == (1, 1)
            and self.stride == (1, 1)
            and self.padding == (0, 0, 0, 0)
            and self.groups == 1
            and self.input_layout == "NHWC"
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of one call, those on padding included."""
        pixels = self.batch * self.out_height * self.out_width
        taps = self.kernel[0] * self.kernel[1]
        return pixels * self.out_channels * taps * (self.in_channels // self.groups)

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output."""
        x = self.batch * self.height * self.width * self.in_channels
        return _ITEM_BYTES[self.dtype] * x + self.output_bytes + self.weight_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        pixels = self.batch * self.out_height * self.out_width
        return _ITEM_BYTES[self.dtype] * pixels * self.out_channels

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        w = math.prod(self.kernel) * self.out_channels * (self.in_channels // self.groups)
        return _ITEM_BYTES[self.dtype] * w


@dataclass(frozen=True, kw_only=True)
class SeparableWorkload:
    """A depthwise convolution and the pointwise one that consumes it, as one kernel."""

    depthwise: ConvWorkload
    pointwise: MatmulWorkload

    @property
    def dtype(self) -> str:
        """Element type of input, weights and output."""
        return self.depthwise.dtype

    @property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        return self.depthwise.macs + self.pointwise.macs

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output; what lies between never leaves the cache."""
        between = 2 * self.pointwise.rows * self.pointwise.depth * _ITEM_BYTES[self.dtype]
        return self.depthwise.bytes + self.pointwise.bytes - between


@dataclass(frozen=True, kw_only=True)
class PoolWorkload:
    """Mean over all pixels: x (batch, pixels, channels) -> y (batch, channels)."""

    batch: int
    pixels: int
    channels: int
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """A mean has no multiply-adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input and output."""
        return _ITEM_BYTES[self.dtype] * self.batch * self.channels * (self.pixels + 1)


@dataclass(frozen=True, kw_only=True)
class GatedWorkload:
    """A pointwise convolution whose input channels are scaled by a gate of squeeze-and-excite.

    y = (x * gate) @ w, with one row of gates (1, depth) for each image.
    """

    batch: int
    pointwise: MatmulWorkload
    """Of all images; `rows` is a multiple of `batch`."""

    @property
    def dtype(self) -> str:
        """Element type of input, gates, weights and output."""
        return self.pointwise.dtype

    @property
    def macs(self) -> int:
        """Multiply-adds of one call; scaling is not among them."""
        return self.pointwise.macs

    @property
    def bytes(self) -> int:
        """Bytes of input, gates, weights and output."""
        return self.pointwise.bytes + _ITEM_BYTES[self.dtype] * self.batch * self.pointwise.depth


@dataclass(frozen=True, kw_only=True)
class CascadeWorkload:
    """Convolutions each of which reads what the one before wrote, as one kernel.

    Dense, depthwise and pointwise ones, of which only the last may add a residual.
    """

    stages: tuple[ConvWorkload, ...]

    @property
    def dtype(self) -> str:
        """Element type of input, weights and output."""
        return self.stages[0].dtype

    @property
    def macs(self) -> int:
        """Multiply-adds of one call; rows that two tasks compute are counted once."""
        return sum(stage.macs for stage in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output; what lies between never leaves the cache."""
        between = sum(stage.output_bytes for stage in self.stages[:-1])
        return sum(stage.bytes for stage in self.stages) - 2 * between


FloatWorkload = (
    MatmulWorkload
    | ConvWorkload
    | SeparableWorkload
    | PoolWorkload
    | GatedWorkload
    | CascadeWorkload
)

TunableWorkload = FloatWorkload | IntegerWorkload
"""What a search may look for better plans for."""


ResizeMode = Literal["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
"""Where a pixel of the output lies on the input, as ONNX names it."""


@dataclass(frozen=True, kw_only=True)
class ResizeWorkload:
    """Bilinear resizing: x (batch, height, width, channels) -> y in `output_layout`."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    mode: ResizeMode
    output_layout: Literal["NHWC", "NCHW"] = "NHWC"
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """Interpolation is not counted among the multiply-adds of a network."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of input and output."""
        pixels = self.height * self.width + self.out_height * self.out_width
        return _ITEM_BYTES[self.dtype] * self.batch * self.channels * pixels


@dataclass(frozen=True, kw_only=True)
class JoinedWorkload:
    """A pointwise convolution of tensors that lie side by side in its input channels.

    y = concat(parts) @ w; a part may be one pixel of each image, which stands for all of it.
    """

    batch: int
    parts: tuple[tuple[int, bool], ...]
    """Of each: channels, and whether it is one pixel."""
    pointwise: MatmulWorkload
    """Of all images; `rows` is a multiple of `batch`, `depth` the sum of the parts' channels."""

    @property
    def dtype(self) -> str:
        """Element type of inputs, weights and output."""
        return self.pointwise.dtype

    @property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        return self.pointwise.macs

    @property
    def bytes(self) -> int:
        """Bytes of inputs, weights and output."""
        spread = sum(channels for channels, is_pixel in self.parts if is_pixel)
        saved = spread * (self.pointwise.rows - self.batch)
        return self.pointwise.bytes - _ITEM_BYTES[self.dtype] * saved


@dataclass(frozen=True, kw_only=True)
class TapsWorkload:
    """A dense convolution of stride 1 that is computed tap by tap, each a matrix product."""

    conv: ConvWorkload

    @property
    def dtype(self) -> str:
        """Element type of input, weights and output."""
        return self.conv.dtype

    @property
    def macs(self) -> int:
        """Multiply-adds of one call, those on padding included."""
        return self.conv.macs

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output."""
        return self.conv.bytes


Workload = TunableWorkload | ByteWorkload | ResizeWorkload | JoinedWorkload | TapsWorkload

PlanSource = Callable[[str, TunableWorkload], Any]
"""Given a family and a workload, the recorded plan for it, or None."""


def describe(workload: Workload) -> dict[str, Any]:
    """Return the workload as JSON-ready values, its kind included."""
    return {"kind": type(workload).__name__.removesuffix("Workload").lower()} | asdict(workload)
