"""MobileNetV1 as a torch module.

Reference: Howard et al. 2017 (arXiv:1704.04861); hyper-parameters of TF-Slim's `mobilenet_v1.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from tvm_mobilenet.models.mobilenet_v1_table import BLOCKS, STEM_CHANNELS, channels
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import Publisher, timm_publisher

__all__ = ["BATCH_NORM_EPS", "BATCH_NORM_MOMENTUM", "MobileNetV1"]

BATCH_NORM_EPS = 1e-3
"""TF-Slim's `batch_norm_epsilon`. timm's weights were trained with torch's 1e-5."""
BATCH_NORM_MOMENTUM = 3e-4
"""TF-Slim's `batch_norm_decay` 0.9997 in torch's spelling; short trainings raise it."""


def _conv_bn_relu6(
    in_channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Make convolution, batch norm and ReLU6.

    The padding is the same on all sides, as in torch and timm. TF-Slim's SAME pads a stride-2
    layer of even input size at the bottom and the right only: its checkpoints see the picture
    shifted by one pixel and do not carry over unchanged.
    """
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=kernel // 2,
                groups=groups,
                bias=False,
            ),
            bn=nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
            act=nn.ReLU6(inplace=True),
        )
    )


class MobileNetV1(Network):
    """Stem, thirteen depthwise-separable blocks, global average pool, dropout, classifier.

    Args:
        alpha: width multiplier, above 0.
        num_classes: number of logits. 1000 for ImageNet; TF-Slim's own has 1001, the first being
            the background.
        dropout: share of the pooled features that training sets to zero; TF-Slim keeps 0.999.

    Shapes:
        (N, 3, H, W) f32 -> (N, num_classes) f32 logits, for any H and W.
    """

    FAMILY = "mobilenet_v1"

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = 1000, dropout: float = 0.001
    ) -> None:
        super().__init__(alpha, num_classes)
        width = channels(STEM_CHANNELS, alpha)
        self.stem = _conv_bn_relu6(3, width, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        for out_width, stride in BLOCKS:
            out_channels = channels(out_width, alpha)
            blocks.append(
                nn.Sequential(
                    OrderedDict(
                        depthwise=_conv_bn_relu6(
                            width, width, kernel=3, stride=stride, groups=width
                        ),
                        pointwise=_conv_bn_relu6(width, out_channels),
                    )
                )
            )
            width = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a batch of preprocessed pictures."""
        features = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(self.dropout(features))

    @staticmethod
    def timm_names() -> dict[str, str]:
        """Map each module name of timm's `mobilenetv1_*` to ours.

        timm groups the blocks into stages, a new one at each stride of 2. Its `mobilenetv1_100h`
        has a further convolution before the classifier: that is another network.
        """
        names = {"conv_stem": "stem.conv", "bn1": "stem.bn", "classifier": "classifier"}
        stage, position = 0, -1
        for index, (_, stride) in enumerate(BLOCKS):
            stage, position = (stage + 1, 0) if stride == 2 else (stage, position + 1)
            theirs, ours = f"blocks.{stage}.{position}", f"blocks.{index}"
            names |= {
                f"{theirs}.conv_dw": f"{ours}.depthwise.conv",
                f"{theirs}.bn1": f"{ours}.depthwise.bn",
                f"{theirs}.conv_pw": f"{ours}.pointwise.conv",
                f"{theirs}.bn2": f"{ours}.pointwise.bn",
            }
        return names

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return timm's `mobilenetv1_*`, which were trained on TF-Slim's value range."""
        half = (0.5, 0.5, 0.5)
        return (timm_publisher(cls.timm_names(), mean=half, std=half),)

    @classmethod
    def alpha_of(cls, state: Mapping[str, torch.Tensor]) -> float | None:
        """Read the width multiplier off weights in our layout; None where they do not show it."""
        weight = state.get("classifier.weight")
        return weight.shape[1] / BLOCKS[-1][0] if weight is not None and weight.ndim == 2 else None
