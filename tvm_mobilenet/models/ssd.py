"""Single-shot detectors on MobileNet bodies as torch modules.

References: in `ssd_table.py`.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tvm_mobilenet.detection.default_boxes import default_boxes
from tvm_mobilenet.detection.suppression import Suppression
from tvm_mobilenet.models.bottleneck import Bottleneck, conv_bn_act, make_block
from tvm_mobilenet.models.bottleneck_table import BottleneckSpec
from tvm_mobilenet.models.mobilenet_v1 import MobileNetV1
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import Publisher
from tvm_mobilenet.models.ssd_table import SsdTable, map_sizes, ssd_v1, ssdlite_v2, ssdlite_v3

__all__ = ["Ssd", "SsdLiteMobileNetV2", "SsdLiteMobileNetV3Large", "SsdMobileNetV1"]

_TORCHVISION_EPS = 1e-3
_RANDOM_MARGIN = 3.0
"""How far the logit of a class must be above 0, in a network of random weights, for its score to
pass the threshold: a few in a hundred do, as in a trained one, instead of all of them."""


class Ssd(Network):
    """Body, extra feature maps, and on each map a head for boxes and one for classes.

    Args:
        alpha: width multiplier, above 0.
        num_classes: classes without the background, which is class 0 of the logits.

    Shapes:
        (N, 3, H, W) f32 -> offsets (N, boxes, 4) f32, logits (N, boxes, 1 + num_classes) f32;
        the boxes are those of `default_boxes` in their order.
    """

    @classmethod
    def table(cls, alpha: float) -> SsdTable:
        """Return the detector's numbers."""
        raise NotImplementedError

    def __init__(self, alpha: float = 1.0, *, num_classes: int = 90) -> None:
        super().__init__(alpha, num_classes)
        table = self.table(alpha)
        self._tap = table.tap
        if table.blocks is None:
            body = MobileNetV1(alpha, num_classes=1)
            self.stem, self.blocks = body.stem, body.blocks
        else:
            self.stem = conv_bn_act(3, table.stem, table.stem_activation, kernel=3, stride=2)
            self.blocks = nn.Sequential(*map(make_block, table.blocks))
        widths = table.channels[1:]
        self.extras = nn.ModuleList(
            _extra(width, out, table.is_lite) for width, out in itertools.pairwise(widths)
        )
        self.heads = nn.ModuleList(
            _Heads(width, boxes, num_classes, is_lite=table.is_lite)
            for width, boxes in zip(table.channels, table.boxes, strict=True)
        )

    @classmethod
    def suppression(cls) -> Suppression:
        """Return what becomes a detection."""
        return cls.table(1.0).suppression

    @classmethod
    def default_boxes(cls, resolution: int) -> npt.NDArray[np.float32]:
        """Return the boxes that the outputs are relative to, (boxes, 4) f32 centre and size."""
        return default_boxes(map_sizes(resolution), cls.table(1.0).boxes)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature maps that the heads look at, finest first."""
        maps = []
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index == self._tap and isinstance(block, Bottleneck):
                for name, part in block.named_children():
                    x = part(x)
                    if name == "expand":
                        maps.append(x)
                continue
            x = block(x)
            if index == self._tap:
                maps.append(x)
        maps.append(x)
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        return maps

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the offsets of every default box and its logits."""
        offsets, logits = [], []
        for feature, head in zip(self.features(x), self.heads, strict=True):
            boxes, classes = head(feature)
            offsets.append(_as_rows(boxes, 4))
            logits.append(_as_rows(classes, self.num_classes + 1))
        return torch.cat(offsets, 1), torch.cat(logits, 1)

    def settle_random(self) -> None:
        """Give random heads the range of trained ones: mostly background, boxes near the default.

        He's initialization gives outputs of a deviation of about 3 here; classes come to about 1.4
        this way and offsets to about 1.
        """
        background = _RANDOM_MARGIN - math.log(self.suppression().score_threshold)
        for key, value in self.state_dict().items():
            if key.endswith(".classes.predict.bias"):
                value.view(-1, self.num_classes + 1)[:, 0] = background
            elif key.endswith(".predict.weight"):
                value *= 0.2**0.5 if ".classes." in key else 0.1**0.5

    @classmethod
    def classes_in(cls, state: Mapping[str, torch.Tensor]) -> int | None:
        """Count the classes of weights in our layout; None where they do not show it."""
        bias = state.get("heads.0.classes.predict.bias")
        boxes = cls.table(1.0).boxes[0]
        return None if bias is None else bias.shape[0] // boxes - 1

    @classmethod
    def is_of_classes(cls, key: str) -> bool:
        """Tell whether the shape of a tensor depends on the number of classes."""
        return ".classes.predict." in key

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return whose weights can be read beside our own; nobody's, where there are none."""
        return ()


class _Heads(nn.Module):
    """What is predicted on one feature map."""

    def __init__(self, channels: int, boxes: int, num_classes: int, *, is_lite: bool) -> None:
        super().__init__()
        self.boxes = _head(channels, boxes * 4, is_lite)
        self.classes = _head(channels, boxes * (num_classes + 1), is_lite)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the offsets and the logits of every cell, in the channels of two maps."""
        return self.boxes(x), self.classes(x)


def _extra(in_channels: int, out_channels: int, is_lite: bool) -> nn.Sequential:
    """Make the layers that halve a map once more."""
    squeezed = out_channels // 2
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["reduce"] = conv_bn_act(in_channels, squeezed, "relu6")
    if is_lite:
        parts["depthwise"] = conv_bn_act(
            squeezed, squeezed, "relu6", kernel=3, stride=2, groups=squeezed
        )
        parts["expand"] = conv_bn_act(squeezed, out_channels, "relu6")
    else:
        parts["expand"] = conv_bn_act(squeezed, out_channels, "relu6", kernel=3, stride=2)
    return nn.Sequential(parts)


def _head(channels: int, outputs: int, is_lite: bool) -> nn.Sequential:
    """Make the layers that predict so many numbers for each cell of a map."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if is_lite:
        parts["depthwise"] = conv_bn_act(channels, channels, "relu6", kernel=3, groups=channels)
    parts["predict"] = nn.Conv2d(channels, outputs, 1)
    return nn.Sequential(parts)


def _as_rows(x: torch.Tensor, values: int) -> torch.Tensor:
    """Turn (N, boxes in a cell * values, H, W) into (N, boxes, values), cell by cell."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


class SsdMobileNetV1(Ssd):
    """SSD on MobileNetV1."""

    FAMILY = "ssd_mobilenet_v1"

    @classmethod
    def table(cls, alpha: float) -> SsdTable:
        """Return the detector's numbers."""
        return ssd_v1(alpha)


class SsdLiteMobileNetV2(Ssd):
    """SSDLite on MobileNetV2."""

    FAMILY = "ssdlite_mobilenet_v2"

    @classmethod
    def table(cls, alpha: float) -> SsdTable:
        """Return the detector's numbers."""
        return ssdlite_v2(alpha)


class SsdLiteMobileNetV3Large(Ssd):
    """SSDLite on MobileNetV3-Large with a reduced tail."""

    FAMILY = "ssdlite_mobilenet_v3_large"

    @classmethod
    def table(cls, alpha: float) -> SsdTable:
        """Return the detector's numbers."""
        return ssdlite_v3(alpha)

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return torchvision's `ssdlite320_mobilenet_v3_large`."""
        half = (0.5, 0.5, 0.5)
        return (
            Publisher(
                name="torchvision",
                marker="backbone.features.0.0.0.weight",
                module_names=_torchvision_names(),
                batch_norm_eps=_TORCHVISION_EPS,
                mean=half,
                std=half,
                crop_share=1.0,
                fit="stretch",
            ),
        )


def _torchvision_names() -> dict[str, str]:
    """Map torchvision's module names to ours.

    Its body is in two halves, cut behind the expansion of C4; what follows in that block keeps its
    position in it.
    """
    table = ssdlite_v3(1.0)
    assert table.blocks is not None
    names = {"backbone.features.0.0.0": "stem.conv", "backbone.features.0.0.1": "stem.bn"}

    def layer(theirs: str, ours: str) -> None:
        names[f"{theirs}.0"], names[f"{theirs}.1"] = f"{ours}.conv", f"{ours}.bn"

    for index, block in enumerate(table.blocks):
        first = index < table.tap
        place = index + 1 if first else index - table.tap
        theirs, ours = f"backbone.features.{0 if first else 1}.{place}", f"blocks.{index}"
        if not isinstance(block, BottleneckSpec):
            layer(theirs, ours)
            continue
        parts = ["expand"] * bool(block.expand_kernel) + ["depthwise"]
        parts += ["squeeze"] * bool(block.squeeze) + ["project"]
        for position, part in enumerate(parts):
            at = f"{theirs}.{position}" if index == table.tap else f"{theirs}.block.{position}"
            if index == table.tap and part == "expand":
                at = f"backbone.features.0.{table.tap + 1}"
            if part == "squeeze":
                names[f"{at}.fc1"] = f"{ours}.squeeze.reduce"
                names[f"{at}.fc2"] = f"{ours}.squeeze.expand"
            else:
                layer(at, f"{ours}.{part}")
    for index in range(len(table.channels) - 2):
        for position, part in enumerate(("reduce", "depthwise", "expand")):
            layer(f"backbone.extra.{index}.{position}", f"extras.{index}.{part}")
    for index in range(len(table.channels)):
        for head, part in (("classification", "classes"), ("regression", "boxes")):
            theirs, ours = f"head.{head}_head.module_list.{index}", f"heads.{index}.{part}"
            layer(f"{theirs}.0", f"{ours}.depthwise")
            names[f"{theirs}.1"] = f"{ours}.predict"
    return names
