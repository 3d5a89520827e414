"""One layer of a network as plain numbers, so that counting needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LayerSpec", "halved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """A convolution with batch norm or bias, or a dense layer."""

    name: str
    """The torch module that computes it."""
    kind: Literal["conv", "depthwise", "pointwise", "dense"]
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    in_size: int = 1
    """Height and width of the input."""
    out_size: int = 1
    """Height and width of the output."""
    has_bias: bool = False
    """A convolution with a bias in place of the batch norm, as squeeze-and-excite has."""
    is_bare: bool = False
    """A convolution with neither, as the scale of LR-ASPP is."""

    @property
    def is_normalized(self) -> bool:
        """Whether a batch norm follows; the classifier and other dense layers have a bias."""
        return self.kind != "dense" and not self.has_bias and not self.is_bare

    @property
    def weights(self) -> int:
        """Number of multipliers, biases and batch norm not counted."""
        per_output = 1 if self.kind == "depthwise" else self.in_channels
        return self.kernel * self.kernel * per_output * self.out_channels

    @property
    def params(self) -> int:
        """Trainable numbers: the weights, and scale and shift of the batch norm or the bias."""
        beside = 0 if self.is_bare else 2 if self.is_normalized else 1
        return self.weights + self.out_channels * beside

    @property
    def statistics(self) -> int:
        """Numbers that batch norm measures instead of training them: mean and variance."""
        return 2 * self.out_channels if self.is_normalized else 0

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture; padding counts as if it were picture."""
        return self.weights * self.out_size * self.out_size


def halved(size: int) -> int:
    """Return the output size of a stride-2 layer, which is padded by half its kernel."""
    return (size + 1) // 2
