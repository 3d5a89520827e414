"""MobileNetV2 as a torch module.

Reference: Sandler et al. 2018 (arXiv:1801.04381); hyper-parameters of TF-Slim's
`mobilenet/mobilenet_v2.py`.
"""

from __future__ import annotations

import torch
from torch import nn

from tvm_mobilenet.models.bottleneck import conv_bn_act, make_block
from tvm_mobilenet.models.mobilenet_v2_table import head_channels, stem_channels, v2_blocks
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import (
    Publisher,
    timm_block_names,
    timm_publisher,
    torchvision_publisher,
)

__all__ = ["MobileNetV2"]


class MobileNetV2(Network):
    """Stem, seventeen inverted residuals, 1x1 convolution, global average pool, classifier.

    Args:
        alpha: width multiplier, above 0.
        num_classes: number of logits.
        dropout: share of the pooled features that training sets to zero; TF-Slim keeps 0.8.

    Shapes:
        (N, 3, H, W) f32 -> (N, num_classes) f32 logits, for any H and W.
    """

    FAMILY = "mobilenet_v2"

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = 1000, dropout: float = 0.2
    ) -> None:
        super().__init__(alpha, num_classes)
        blocks, head = v2_blocks(alpha), head_channels(alpha)
        self.stem = conv_bn_act(3, stem_channels(alpha), "relu6", kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.head = conv_bn_act(blocks[-1].out_channels, head, "relu6")
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a batch of preprocessed pictures."""
        features = self.head(self.blocks(self.stem(x))).mean((2, 3))
        return self.classifier(self.dropout(features))

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's `mobilenet_v2` and timm's `mobilenetv2_*`."""
        timm = timm_block_names(v2_blocks(1.0))
        timm |= {"conv_head": "head.conv", "bn2": "head.bn", "classifier": "classifier"}
        return (
            torchvision_publisher(_torchvision_names(), batch_norm_eps=1e-5),
            timm_publisher(timm),
        )


def _torchvision_names() -> dict[str, str]:
    names = {
        "features.0.0": "stem.conv",
        "features.0.1": "stem.bn",
        "features.18.0": "head.conv",
        "features.18.1": "head.bn",
        "classifier.1": "classifier",
    }
    for index, block in enumerate(v2_blocks(1.0)):
        theirs, ours = f"features.{index + 1}.conv", f"blocks.{index}"
        parts = ["expand", "depthwise"] if block.expand_kernel else ["depthwise"]
        for position, part in enumerate(parts):
            names[f"{theirs}.{position}.0"] = f"{ours}.{part}.conv"
            names[f"{theirs}.{position}.1"] = f"{ours}.{part}.bn"
        # The projection has no activation, and its two layers stand in the list by themselves.
        names[f"{theirs}.{len(parts)}"] = f"{ours}.project.conv"
        names[f"{theirs}.{len(parts) + 1}"] = f"{ours}.project.bn"
    return names
