"""LR-ASPP and DeepLabv3 on MobileNets as torch modules: a class for every pixel.

References: see `segmentation_table`. The two on V3 compute what torchvision's
`lraspp_mobilenet_v3_large` and `deeplabv3_mobilenet_v3_large` do, and read their weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import nn

from tvm_mobilenet.models.bottleneck import conv_bn_act, make_block
from tvm_mobilenet.models.mobilenet_v2_table import stem_channels as v2_stem_channels
from tvm_mobilenet.models.mobilenet_v3 import torchvision_v3_names
from tvm_mobilenet.models.mobilenet_v3_table import stem_channels as v3_stem_channels
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import Publisher, torchvision_segmentation_publisher
from tvm_mobilenet.models.segmentation_table import (
    ASPP_CHANNELS,
    ASPP_RATES,
    LOW_BLOCK,
    LRASPP_CHANNELS,
    VOC_CLASSES,
    atrous_v2_blocks,
    atrous_v3_blocks,
)

__all__ = ["DeepLabV3MobileNetV2", "DeepLabV3MobileNetV3Large", "LrasppMobileNetV3Large"]

HEAD_EPS = 1e-5
"""Of the heads' batch norms, torch's default: torchvision gives the body alone another."""


class SegmentationNetwork(Network):
    """A stem, atrous bottlenecks and a head whose scores are blown up to the picture's size.

    Args:
        alpha: 1, for there are no others.
        num_classes: number of scores of a pixel.
        dropout: share of the head's features that training sets to zero.

    Shapes:
        (N, 3, H, W) f32 -> (N, num_classes, H, W) f32 scores, for any H and W.
    """

    CLASSIFIER: ClassVar[str] = "classifier"
    """The 1x1 convolution that has an output for each class."""
    ALIGN_CORNERS: ClassVar[bool] = False
    """Whether the corner pixels of a map and of what it is blown up to lie on each other."""

    stem: nn.Module
    blocks: nn.Sequential

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = VOC_CLASSES, dropout: float | None = None
    ) -> None:
        super().__init__(alpha, num_classes)
        self.dropout = nn.Dropout(self.DROPOUT if dropout is None else dropout)

    DROPOUT: ClassVar[float] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the scores of every pixel of a batch of preprocessed pictures."""
        return self._blown_up(self.scores(x), x)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the scores at the size of a feature map."""
        raise NotImplementedError

    def _blown_up(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(
            x, size=like.shape[2:], mode="bilinear", align_corners=self.ALIGN_CORNERS
        )

    def shared_norms(self) -> Iterator[nn.BatchNorm2d]:
        """Yield the batch norms of the body; the heads' have an epsilon of their own."""
        for part in (self.stem, self.blocks):
            yield from (child for child in part.modules() if isinstance(child, nn.BatchNorm2d))

    @classmethod
    def classes_in(cls, state: Mapping[str, torch.Tensor]) -> int | None:
        """Count the classes of weights in our layout; None where they do not show it."""
        weight = state.get(f"{cls.CLASSIFIER}.weight")
        return weight.shape[0] if weight is not None and weight.ndim == 4 else None

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's model of the same name; it publishes none on V2."""
        return ()


def _head_conv(
    in_channels: int, out_channels: int, act: str = "relu", *, kernel: int = 1, dilation: int = 1
) -> nn.Sequential:
    conv = conv_bn_act(in_channels, out_channels, act, kernel=kernel, dilation=dilation)  # type: ignore[arg-type]
    conv.bn.eps = HEAD_EPS  # type: ignore[union-attr]
    return conv


class LrasppMobileNetV3Large(SegmentationNetwork):
    """LR-ASPP on MobileNetV3-Large: a gated branch of stride 16, and one of stride 8."""

    FAMILY = "lraspp_mobilenet_v3_large"
    CLASSIFIER = "high_classifier"

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = VOC_CLASSES, dropout: float | None = None
    ) -> None:
        super().__init__(alpha, num_classes=num_classes, dropout=dropout)
        blocks = atrous_v3_blocks()
        low, high = blocks[LOW_BLOCK].out_channels, blocks[-1].out_channels
        self.stem = conv_bn_act(3, v3_stem_channels(1.0), "hard-swish", kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.reduce = _head_conv(high, LRASPP_CHANNELS)
        self.scale = nn.Conv2d(high, LRASPP_CHANNELS, 1, bias=False)
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(LRASPP_CHANNELS, num_classes, 1)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the scores at an eighth of the picture's size."""
        low = self.blocks[: LOW_BLOCK + 1](self.stem(x))
        high = self.blocks[LOW_BLOCK + 1 :](low)
        gate = torch.sigmoid(self.scale(high.mean((2, 3), keepdim=True)))
        gated = self.dropout(self.reduce(high) * gate)
        return self.low_classifier(low) + self.high_classifier(self._blown_up(gated, low))

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's `lraspp_mobilenet_v3_large`."""
        return (
            torchvision_segmentation_publisher(
                torchvision_v3_names("large", "backbone.")
                | {
                    "classifier.cbr.0": "reduce.conv",
                    "classifier.cbr.1": "reduce.bn",
                    "classifier.scale.1": "scale",
                    "classifier.low_classifier": "low_classifier",
                    "classifier.high_classifier": "high_classifier",
                }
            ),
        )


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling: branches that look unlike far, and one that sees all.

    Reference: Chen et al. 2017 (arXiv:1706.05587), section 3.3.
    """

    def __init__(self, in_channels: int, rates: tuple[int, ...], act: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _head_conv(in_channels, ASPP_CHANNELS, act),
                *(
                    _head_conv(in_channels, ASPP_CHANNELS, act, kernel=3, dilation=rate)
                    for rate in rates
                ),
            ]
        )
        self.pooled = _head_conv(in_channels, ASPP_CHANNELS, act)
        self.project = _head_conv((len(rates) + 2) * ASPP_CHANNELS, ASPP_CHANNELS, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (N, 256, H, W) of (N, C, H, W)."""
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class DeepLabV3MobileNetV2(SegmentationNetwork):
    """DeepLabv3 on MobileNetV2, on its last bottleneck, with the 1x1 and the pooled branch alone.

    Blown up with the corners aligned, as in DeepLab's release, whose pictures have a side of
    16 k + 1 pixels for it.
    """

    FAMILY = "deeplabv3_mobilenet_v2"
    ALIGN_CORNERS = True
    DROPOUT = 0.1

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = VOC_CLASSES, dropout: float | None = None
    ) -> None:
        super().__init__(alpha, num_classes=num_classes, dropout=dropout)
        blocks = atrous_v2_blocks()
        self.stem = conv_bn_act(3, v2_stem_channels(1.0), "relu6", kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.aspp = _Aspp(blocks[-1].out_channels, (), "relu")
        self.classifier = nn.Conv2d(ASPP_CHANNELS, num_classes, 1)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the scores at a sixteenth of the picture's size."""
        return self.classifier(self.dropout(self.aspp(self.blocks(self.stem(x)))))


class DeepLabV3MobileNetV3Large(SegmentationNetwork):
    """DeepLabv3 on MobileNetV3-Large."""

    FAMILY = "deeplabv3_mobilenet_v3_large"
    DROPOUT = 0.5

    def __init__(
        self, alpha: float = 1.0, *, num_classes: int = VOC_CLASSES, dropout: float | None = None
    ) -> None:
        super().__init__(alpha, num_classes=num_classes, dropout=dropout)
        blocks = atrous_v3_blocks()
        self.stem = conv_bn_act(3, v3_stem_channels(1.0), "hard-swish", kernel=3, stride=2)
        self.blocks = nn.Sequential(*map(make_block, blocks))
        self.aspp = _Aspp(blocks[-1].out_channels, ASPP_RATES, "relu")
        self.head = _head_conv(ASPP_CHANNELS, ASPP_CHANNELS, kernel=3)
        self.classifier = nn.Conv2d(ASPP_CHANNELS, num_classes, 1)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the scores at a sixteenth of the picture's size."""
        features = self.aspp(self.blocks(self.stem(x)))
        return self.classifier(self.head(self.dropout(features)))

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's `deeplabv3_mobilenet_v3_large`."""
        names = torchvision_v3_names("large", "backbone.")
        for index in range(len(ASPP_RATES) + 1):
            names |= _pair(f"classifier.0.convs.{index}", 0, f"aspp.branches.{index}")
        names |= _pair(f"classifier.0.convs.{len(ASPP_RATES) + 1}", 1, "aspp.pooled")
        names |= _pair("classifier.0.project", 0, "aspp.project")
        names |= _pair("classifier", 1, "head") | {"classifier.4": "classifier"}
        return (torchvision_segmentation_publisher(names),)


def _pair(theirs: str, first: int, ours: str) -> dict[str, str]:
    return {f"{theirs}.{first}": f"{ours}.conv", f"{theirs}.{first + 1}": f"{ours}.bn"}
