"""The blocks that V2, V3 and V4 are made of, as plain numbers, so that counting needs no torch.

One record spans them all: the inverted residual of V2 (Sandler et al. 2018, arXiv:1801.04381,
table 1), V3's with squeeze-and-excite (Howard et al. 2019, arXiv:1905.02244, figure 4), and V4's
universal inverted bottleneck (Qin et al. 2024, arXiv:2404.10518, section 3), which may have a
depthwise convolution before the expansion and none after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from tvm_mobilenet.models.layers import LayerSpec, halved

__all__ = ["Activation", "BlockSpec", "BottleneckSpec", "ConvSpec", "LayerTable", "make_divisible"]

Activation = Literal["relu", "relu6", "hard-swish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """A full convolution with batch norm and activation."""

    in_channels: int
    out_channels: int
    activation: Activation
    kernel: int = 1
    stride: int = 1
    stage: int = 0
    """timm groups blocks into stages; only its names depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckSpec:
    """Expansion, depthwise convolution, perhaps squeeze-and-excite, linear projection."""

    in_channels: int
    expanded: int
    """Channels between expansion and projection."""
    out_channels: int
    activation: Activation
    """After the expansion and after the depthwise convolution; the projection has none."""
    expand_kernel: int = 1
    """0 for no expansion, then `expanded` is `in_channels`; 3 in V4's fused block."""
    kernel: int = 3
    """Of the depthwise convolution after the expansion; 0 for none."""
    start_kernel: int = 0
    """Of V4's depthwise convolution before the expansion, which has no activation; 0 for none."""
    stride: int = 1
    """Of the depthwise convolution, the later one of two; in a fused block of the expansion."""
    squeeze: int = 0
    """Channels of squeeze-and-excite's bottleneck; 0 for none."""
    dilation: int = 1
    """Of the depthwise convolution after the expansion: how far apart its taps are."""
    stage: int = 0
    """timm groups blocks into stages; only its names depend on it."""

    @property
    def is_residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def start_stride(self) -> int:
        """Stride of the depthwise convolution before the expansion."""
        return 1 if self.kernel else self.stride

    @property
    def expand_stride(self) -> int:
        """Stride of the expansion."""
        return 1 if self.kernel or self.start_kernel else self.stride


BlockSpec = ConvSpec | BottleneckSpec


def make_divisible(width: float, divisor: int = 8) -> int:
    """Round a width to a multiple of 8, at least 8, never down by more than a tenth.

    TF-Slim's rule for V2 and later (`mobilenet/mobilenet.py`), which torchvision and timm share.
    """
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class LayerTable:
    """Collects the layers of a network while the size of the feature map is followed."""

    def __init__(self, resolution: int) -> None:
        self.layers: list[LayerSpec] = []
        self._size = resolution

    def conv(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        kind: Literal["conv", "depthwise", "pointwise"] = "conv",
        kernel: int = 1,
        stride: int = 1,
    ) -> None:
        """Append a convolution with batch norm."""
        out_size = halved(self._size) if stride == 2 else self._size
        self.layers.append(
            LayerSpec(
                name=name,
                kind="pointwise" if kind == "conv" and kernel == 1 else kind,
                in_channels=in_channels,
                out_channels=out_channels,
                kernel=kernel,
                stride=stride,
                in_size=self._size,
                out_size=out_size,
            )
        )
        self._size = out_size

    def pool(self) -> None:
        """Average the feature map to one pixel."""
        self._size = 1

    @contextmanager
    def pooled(self) -> Iterator[None]:
        """Lay out what reads the feature map averaged to one pixel, beside what reads it whole."""
        with self.at(1):
            yield

    @contextmanager
    def at(self, size: int) -> Iterator[None]:
        """Lay out what reads a feature map of another size."""
        before, self._size = self._size, size
        yield
        self._size = before

    def biased(self, name: str, in_channels: int, out_channels: int) -> None:
        """Append a 1x1 convolution with a bias, as the classifiers of segmentation are."""
        self._plain(name, in_channels, out_channels, has_bias=True)

    def bare(self, name: str, in_channels: int, out_channels: int) -> None:
        """Append a 1x1 convolution with neither bias nor batch norm."""
        self._plain(name, in_channels, out_channels, has_bias=False)

    def _plain(self, name: str, in_channels: int, out_channels: int, *, has_bias: bool) -> None:
        self.layers.append(
            LayerSpec(
                name=name,
                kind="pointwise",
                in_channels=in_channels,
                out_channels=out_channels,
                in_size=self._size,
                out_size=self._size,
                has_bias=has_bias,
                is_bare=not has_bias,
            )
        )

    def dense(self, name: str, in_channels: int, out_channels: int) -> None:
        """Append a dense layer with bias."""
        self.layers.append(
            LayerSpec(name=name, kind="dense", in_channels=in_channels, out_channels=out_channels)
        )

    def blocks(self, blocks: Iterable[BlockSpec]) -> None:
        """Append `blocks.0`, `blocks.1` and so on."""
        for index, block in enumerate(blocks):
            name = f"blocks.{index}"
            if isinstance(block, BottleneckSpec):
                self._bottleneck(name, block)
            else:
                self.conv(
                    name,
                    block.in_channels,
                    block.out_channels,
                    kernel=block.kernel,
                    stride=block.stride,
                )

    def _bottleneck(self, name: str, block: BottleneckSpec) -> None:
        width, expanded = block.in_channels, block.expanded
        if block.start_kernel:
            self._depthwise(f"{name}.start", width, block.start_kernel, block.start_stride)
        if block.expand_kernel:
            kernel, stride = block.expand_kernel, block.expand_stride
            self.conv(f"{name}.expand", width, expanded, kernel=kernel, stride=stride)
        if block.kernel:
            self._depthwise(f"{name}.depthwise", expanded, block.kernel, block.stride)
        if block.squeeze:
            gate = LayerSpec(
                name=f"{name}.squeeze.reduce",
                kind="pointwise",
                in_channels=expanded,
                out_channels=block.squeeze,
                has_bias=True,
            )
            self.layers.append(gate)
            self.layers.append(
                replace(
                    gate,
                    name=f"{name}.squeeze.expand",
                    in_channels=block.squeeze,
                    out_channels=expanded,
                )
            )
        self.conv(f"{name}.project", expanded, block.out_channels)

    def _depthwise(self, name: str, channels: int, kernel: int, stride: int) -> None:
        self.conv(name, channels, channels, kind="depthwise", kernel=kernel, stride=stride)
