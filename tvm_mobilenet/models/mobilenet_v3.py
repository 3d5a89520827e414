"""MobileNetV3, large and small, with their minimalistic variants, as torch modules.

Reference: Howard et al. 2019 (arXiv:1905.02244); hyper-parameters of TF-Slim's
`mobilenet/mobilenet_v3.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import nn

from tvm_mobilenet.models.bottleneck import activation, conv_bn_act, make_block
from tvm_mobilenet.models.bottleneck_table import BottleneckSpec
from tvm_mobilenet.models.mobilenet_v3_table import (
    Variant,
    activation_of,
    head_channels,
    stem_channels,
    v3_blocks,
)
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import (
    Publisher,
    timm_block_names,
    timm_publisher,
    torchvision_publisher,
)

__all__ = [
    "MobileNetV3Large",
    "MobileNetV3LargeMinimalistic",
    "MobileNetV3Small",
    "MobileNetV3SmallMinimalistic",
    "torchvision_v3_names",
]


class _MobileNetV3(Network):
    """Stem, bottlenecks, 1x1 convolution, global average pool, dense layer, classifier.

    Args:
        alpha: width multiplier, above 0.
        num_classes: number of logits.
        dropout: share of the head's features that training sets to zero; TF-Slim keeps 0.8.

    Shapes:
        (N, 3, H, W) f32 -> (N, num_classes) f32 logits, for any H and W.
    """

    VARIANT: ClassVar[Variant]

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = 1000, dropout: float = 0.2
    ) -> None:
        super().__init__(alpha, num_classes)
        act = activation_of(self.VARIANT)
        blocks, head = v3_blocks(self.VARIANT, alpha), head_channels(self.VARIANT, alpha)
        self.stem = conv_bn_act(3, stem_channels(alpha), act, kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.head = nn.Sequential(
            OrderedDict(dense=nn.Linear(blocks[-1].out_channels, head), act=activation(act))
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a batch of preprocessed pictures."""
        features = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(self.dropout(self.head(features)))

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's `mobilenet_v3_*` and timm's `mobilenetv3_*`, `tf_` or not.

        timm's head is a 1x1 convolution of the pooled pixel, which is the same matrix.
        """
        timm = timm_block_names(v3_blocks(cls.VARIANT, 1.0))
        timm |= {"conv_head": "head.dense", "classifier": "classifier"}
        if cls.VARIANT.endswith("minimalistic"):
            return (timm_publisher(timm),)
        return (
            torchvision_publisher(
                torchvision_v3_names(cls.VARIANT)
                | {"classifier.0": "head.dense", "classifier.3": "classifier"},
                batch_norm_eps=1e-3,
            ),
            timm_publisher(timm),
        )


def torchvision_v3_names(variant: Variant, prefix: str = "features.") -> dict[str, str]:
    """Map torchvision's names of stem and blocks to ours; theirs begin with `prefix`."""
    names = {f"{prefix}0.0": "stem.conv", f"{prefix}0.1": "stem.bn"}
    for index, block in enumerate(v3_blocks(variant, 1.0)):
        theirs, ours = f"{prefix}{index + 1}", f"blocks.{index}"
        if not isinstance(block, BottleneckSpec):
            names |= {f"{theirs}.0": f"{ours}.conv", f"{theirs}.1": f"{ours}.bn"}
            continue
        parts = ["expand"] * bool(block.expand_kernel) + ["depthwise"]
        parts += ["squeeze"] * bool(block.squeeze) + ["project"]
        for position, part in enumerate(parts):
            place = f"{theirs}.block.{position}"
            if part == "squeeze":
                names[f"{place}.fc1"] = f"{ours}.squeeze.reduce"
                names[f"{place}.fc2"] = f"{ours}.squeeze.expand"
            else:
                names |= {f"{place}.0": f"{ours}.{part}.conv", f"{place}.1": f"{ours}.{part}.bn"}
    return names


class MobileNetV3Large(_MobileNetV3):
    """MobileNetV3-Large."""

    FAMILY = "mobilenet_v3_large"
    VARIANT = "large"


class MobileNetV3LargeMinimalistic(_MobileNetV3):
    """MobileNetV3-Large without squeeze-and-excite, hard-swish and 5x5."""

    FAMILY = "mobilenet_v3_large_minimalistic"
    VARIANT = "large_minimalistic"


class MobileNetV3Small(_MobileNetV3):
    """MobileNetV3-Small."""

    FAMILY = "mobilenet_v3_small"
    VARIANT = "small"


class MobileNetV3SmallMinimalistic(_MobileNetV3):
    """MobileNetV3-Small without squeeze-and-excite, hard-swish and 5x5."""

    FAMILY = "mobilenet_v3_small_minimalistic"
    VARIANT = "small_minimalistic"
