"""The detectors as plain numbers, so that counting needs no torch: body, extra maps, heads.

References: SSD, Liu et al. 2016 (arXiv:1512.02325), section 2; with MobileNetV1, Howard et al. 2017
(arXiv:1704.04861), section 4.6, and TensorFlow's `ssd_mobilenet_v1`; SSDLite, Sandler et al. 2018
(arXiv:1801.04381), section 6.2; with MobileNetV3, Howard et al. 2019 (arXiv:1905.02244), section
6.3, its last stage half as wide, as in torchvision's `ssdlite320_mobilenet_v3_large`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm_mobilenet.detection.suppression import Suppression
from tvm_mobilenet.models.bottleneck_table import (
    Activation,
    BlockSpec,
    BottleneckSpec,
    ConvSpec,
    LayerTable,
    make_divisible,
)
from tvm_mobilenet.models.layers import LayerSpec, halved
from tvm_mobilenet.models.mobilenet_v1_table import BLOCKS as V1_BLOCKS
from tvm_mobilenet.models.mobilenet_v1_table import STEM_CHANNELS as V1_STEM_CHANNELS
from tvm_mobilenet.models.mobilenet_v1_table import channels as v1_channels
from tvm_mobilenet.models.mobilenet_v1_table import mobilenet_v1_layers
from tvm_mobilenet.models.mobilenet_v2_table import head_channels, stem_channels, v2_blocks
from tvm_mobilenet.models.mobilenet_v3_table import stem_channels as v3_stem_channels
from tvm_mobilenet.models.mobilenet_v3_table import v3_blocks

__all__ = [
    "COCO_CLASSES",
    "SsdTable",
    "map_sizes",
    "ssd_layers",
    "ssd_v1",
    "ssdlite_v2",
    "ssdlite_v3",
]

COCO_CLASSES = 90
"""COCO numbers its 80 classes from 1 to 90 with gaps, and detectors are trained on the numbers."""
MAPS = 6
_SSD = Suppression(score_threshold=0.01, iou_threshold=0.45, detections=200)
"""Section 3.1 of SSD's paper."""
_SSDLITE = Suppression(score_threshold=0.001, iou_threshold=0.55, detections=300)
"""torchvision's, which considers the best 300 candidates of each class alone; here it is all."""
_EXTRA_CHANNELS = (512, 256, 256, 128)
_MIN_EXTRA = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdTable:
    """One detector: where its feature maps come from, and how many boxes a cell of each has."""

    stem: int
    """Channels of the stem."""
    stem_activation: Activation
    blocks: tuple[BlockSpec, ...] | None
    """The body; None for MobileNetV1's, which has blocks of its own."""
    tap: int
    """Index of the block that the first map is taken from: its expansion in an inverted residual,
    its output in MobileNetV1."""
    channels: tuple[int, ...]
    """Of each map; the second is the body's output, the others those of the extra layers."""
    is_lite: bool
    """Depthwise-separable extra layers and heads."""
    boxes: tuple[int, ...]
    """Default boxes in a cell of each map."""
    suppression: Suppression
    """What becomes a detection."""


def _extras(alpha: float) -> tuple[int, ...]:
    return tuple(max(_MIN_EXTRA, int(width * alpha)) for width in _EXTRA_CHANNELS)


def ssd_v1(alpha: float) -> SsdTable:
    """Return SSD on MobileNetV1: maps after blocks 11 and 13, heads of one 1x1 convolution."""
    first, last = (v1_channels(V1_BLOCKS[index][0], alpha) for index in (10, 12))
    return SsdTable(
        stem=v1_channels(V1_STEM_CHANNELS, alpha),
        stem_activation="relu6",
        blocks=None,
        tap=10,
        channels=(first, last, *_extras(alpha)),
        is_lite=False,
        boxes=(3, 6, 6, 6, 6, 6),
        suppression=_SSD,
    )


def ssdlite_v2(alpha: float) -> SsdTable:
    """Return SSDLite on MobileNetV2: maps at the expansion of layer 15 and at the last layer."""
    blocks, head = v2_blocks(alpha), head_channels(alpha)
    tap = _last_stride(blocks)
    return SsdTable(
        stem=stem_channels(alpha),
        stem_activation="relu6",
        blocks=(
            *blocks,
            ConvSpec(
                in_channels=blocks[-1].out_channels, out_channels=head, activation="relu6", stage=7
            ),
        ),
        tap=tap,
        channels=(blocks[tap].expanded, head, *_extras(alpha)),
        is_lite=True,
        boxes=(3, 6, 6, 6, 6, 6),
        suppression=_SSDLITE,
    )


def ssdlite_v3(alpha: float) -> SsdTable:
    """Return SSDLite on MobileNetV3-Large with half the channels from C4 on."""
    blocks = list(v3_blocks("large", alpha))
    tap = _last_stride(blocks)
    width = 0
    for index in range(tap, len(blocks)):
        block = blocks[index]
        out = make_divisible(block.out_channels / 2)
        if isinstance(block, BottleneckSpec):
            if index > tap:
                expanded = make_divisible(block.expanded / 2)
                block = replace(
                    block,
                    in_channels=width,
                    expanded=expanded,
                    squeeze=make_divisible(expanded / 4),
                )
            blocks[index] = replace(block, out_channels=out)
        else:
            blocks[index] = replace(block, in_channels=width, out_channels=out)
        width = out
    first = blocks[tap]
    assert isinstance(first, BottleneckSpec)
    return SsdTable(
        stem=v3_stem_channels(alpha),
        stem_activation="hard-swish",
        blocks=tuple(blocks),
        tap=tap,
        channels=(first.expanded, width, *_extras(alpha)),
        is_lite=True,
        boxes=(6,) * MAPS,
        suppression=_SSDLITE,
    )


def _last_stride(blocks: tuple[BottleneckSpec, ...] | list[BlockSpec]) -> int:
    """Return the index of the last block that halves the map."""
    return max(index for index, block in enumerate(blocks) if block.stride == 2)


def map_sizes(resolution: int) -> tuple[int, ...]:
    """Return the side of each feature map: strides of 16 and 32, then each half of the last."""
    size = resolution
    for _ in range(4):
        size = halved(size)
    sizes = [size]
    while len(sizes) < MAPS:
        sizes.append(halved(sizes[-1]))
    return tuple(sizes)


def ssd_layers(
    table: Callable[[float], SsdTable], alpha: float, resolution: int, num_classes: int
) -> tuple[LayerSpec, ...]:
    """Lay out every layer that holds parameters; classes are counted without the background."""
    ssd = table(alpha)
    sizes = map_sizes(resolution)
    layers = LayerTable(resolution)
    if ssd.blocks is None:
        layers.layers += mobilenet_v1_layers(alpha, resolution)[:-1]
    else:
        layers.conv("stem", 3, ssd.stem, kernel=3, stride=2)
        layers.blocks(ssd.blocks)
    for index, out in enumerate(ssd.channels[2:]):
        width, name = ssd.channels[index + 1], f"extras.{index}"
        extra = LayerTable(sizes[index + 1])
        extra.conv(f"{name}.reduce", width, out // 2)
        if ssd.is_lite:
            extra.conv(
                f"{name}.depthwise", out // 2, out // 2, kind="depthwise", kernel=3, stride=2
            )
            extra.conv(f"{name}.expand", out // 2, out)
        else:
            extra.conv(f"{name}.expand", out // 2, out, kernel=3, stride=2)
        layers.layers += extra.layers
    for index, (size, width, boxes) in enumerate(zip(sizes, ssd.channels, ssd.boxes, strict=True)):
        for part, values in (("boxes", 4), ("classes", num_classes + 1)):
            name = f"heads.{index}.{part}"
            if ssd.is_lite:
                head = LayerTable(size)
                head.conv(f"{name}.depthwise", width, width, kind="depthwise", kernel=3)
                layers.layers += head.layers
            layers.layers.append(
                LayerSpec(
                    name=f"{name}.predict",
                    kind="pointwise",
                    in_channels=width,
                    out_channels=boxes * values,
                    in_size=size,
                    out_size=size,
                    has_bias=True,
                )
            )
    return tuple(layers.layers)
