"""MobileNetV4-Conv, small, medium and large, as torch modules.

Reference: Qin et al. 2024 (arXiv:2404.10518); hyper-parameters of TensorFlow's model garden.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from tvm_mobilenet.models.bottleneck import conv_bn_act, make_block
from tvm_mobilenet.models.mobilenet_v4_table import (
    HEAD_CHANNELS,
    STEM_CHANNELS,
    Variant,
    v4_blocks,
)
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import Publisher, timm_block_names, timm_publisher

__all__ = ["MobileNetV4ConvLarge", "MobileNetV4ConvMedium", "MobileNetV4ConvSmall"]


class _MobileNetV4(Network):
    """Stem, blocks, global average pool, 1x1 convolution, classifier.

    Args:
        alpha: 1; the family has no width multiplier.
        num_classes: number of logits.
        dropout: share of the head's features that training sets to zero.

    Shapes:
        (N, 3, H, W) f32 -> (N, num_classes) f32 logits, for any H and W.
    """

    VARIANT: ClassVar[Variant]

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = 1000, dropout: float = 0.2
    ) -> None:
        super().__init__(alpha, num_classes)
        blocks = v4_blocks(self.VARIANT)
        self.stem = conv_bn_act(3, STEM_CHANNELS[self.VARIANT], "relu", kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.head = conv_bn_act(blocks[-1].out_channels, HEAD_CHANNELS, "relu")
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a batch of preprocessed pictures."""
        means = self.blocks(self.stem(x)).mean((2, 3), keepdim=True)
        return self.classifier(self.dropout(self.head(means).flatten(1)))

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return timm's `mobilenetv4_conv_*`; torchvision has none."""
        names = timm_block_names(v4_blocks(cls.VARIANT), universal=True)
        names |= {"conv_head": "head.conv", "norm_head": "head.bn", "classifier": "classifier"}
        return (timm_publisher(names),)


class MobileNetV4ConvSmall(_MobileNetV4):
    """MobileNetV4-Conv-Small."""

    FAMILY = "mobilenet_v4_conv_small"
    VARIANT = "conv_small"


class MobileNetV4ConvMedium(_MobileNetV4):
    """MobileNetV4-Conv-Medium."""

    FAMILY = "mobilenet_v4_conv_medium"
    VARIANT = "conv_medium"


class MobileNetV4ConvLarge(_MobileNetV4):
    """MobileNetV4-Conv-Large."""

    FAMILY = "mobilenet_v4_conv_large"
    VARIANT = "conv_large"
