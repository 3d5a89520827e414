"""The networks for segmentation as plain numbers: atrous bodies and the heads on top of them.

References: DeepLabv3 (Chen et al. 2017, arXiv:1706.05587), section 3; its form on MobileNetV2
(Sandler et al. 2018, arXiv:1801.04381, section 6.3) and the LR-ASPP head of MobileNetV3 (Howard et
al. 2019, arXiv:1905.02244, section 6.4). Those on V3 are torchvision's
(`models/segmentation/lraspp.py`, `deeplabv3.py`), the one on V2 is that of DeepLab's release.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tvm_mobilenet.models.bottleneck_table import BlockSpec, BottleneckSpec, LayerTable
from tvm_mobilenet.models.layers import LayerSpec
from tvm_mobilenet.models.mobilenet_v2_table import stem_channels as v2_stem_channels
from tvm_mobilenet.models.mobilenet_v2_table import v2_blocks
from tvm_mobilenet.models.mobilenet_v3_table import stem_channels as v3_stem_channels
from tvm_mobilenet.models.mobilenet_v3_table import v3_blocks

__all__ = [
    "ASPP_CHANNELS",
    "ASPP_RATES",
    "LOW_BLOCK",
    "LRASPP_CHANNELS",
    "VOC_CLASSES",
    "atrous_v2_blocks",
    "atrous_v3_blocks",
    "deeplabv3_v2_layers",
    "deeplabv3_v3_layers",
    "lraspp_v3_layers",
]

VOC_CLASSES = 21
"""Twenty kinds of objects, and the background before them."""

OUTPUT_STRIDE = 16
"""Side of the picture over that of the last feature map."""
RATE = 2
"""Of what comes after the stride that an output stride of 16 leaves out."""
LOW_BLOCK = 3
"""LR-ASPP also reads what the first block of output stride 8 computes."""
LRASPP_CHANNELS = 128
ASPP_CHANNELS = 256
ASPP_RATES = (12, 24, 36)
"""torchvision's; the paper has 6, 12 and 18 at output stride 16."""


def atrous_v2_blocks() -> tuple[BottleneckSpec, ...]:
    """Lay out V2's inverted residuals for an output stride of 16.

    As in TF-Slim the block that loses its stride keeps rate 1, for it reads what it would have
    read; those after it look twice as far.
    """
    return tuple(b for b in _atrous(v2_blocks(1.0), first_rate=1) if isinstance(b, BottleneckSpec))


def atrous_v3_blocks() -> tuple[BlockSpec, ...]:
    """Lay out V3-Large's bottlenecks and last convolution for an output stride of 16.

    As in torchvision the block that loses its stride has rate 2 already.
    """
    return tuple(_atrous(v3_blocks("large", 1.0), first_rate=RATE))


def _atrous(blocks: Iterable[BlockSpec], first_rate: int) -> list[BlockSpec]:
    result: list[BlockSpec] = []
    stride, is_atrous = 2, False  # of the stem
    for block in blocks:
        if isinstance(block, BottleneckSpec):
            if stride == OUTPUT_STRIDE and block.stride == 2:
                block = replace(block, stride=1, dilation=first_rate)
                is_atrous = True
            elif is_atrous:
                block = replace(block, dilation=RATE)
        stride *= block.stride
        result.append(block)
    return result


def deeplabv3_v2_layers(
    alpha: float, resolution: int, num_classes: int = VOC_CLASSES
) -> tuple[LayerSpec, ...]:
    """Lay out DeepLabv3 on V2: no atrous branches, as the paper's table 7 recommends."""
    del alpha
    table = LayerTable(resolution)
    blocks = atrous_v2_blocks()
    table.conv("stem", 3, v2_stem_channels(1.0), kernel=3, stride=2)
    table.blocks(blocks)
    _aspp(table, blocks[-1].out_channels, rates=())
    table.biased("classifier", ASPP_CHANNELS, num_classes)
    return tuple(table.layers)


def deeplabv3_v3_layers(
    alpha: float, resolution: int, num_classes: int = VOC_CLASSES
) -> tuple[LayerSpec, ...]:
    """Lay out DeepLabv3 on V3-Large; training's auxiliary classifier is no part of it."""
    del alpha
    table = LayerTable(resolution)
    blocks = atrous_v3_blocks()
    table.conv("stem", 3, v3_stem_channels(1.0), kernel=3, stride=2)
    table.blocks(blocks)
    _aspp(table, blocks[-1].out_channels, rates=ASPP_RATES)
    table.conv("head", ASPP_CHANNELS, ASPP_CHANNELS, kernel=3)
    table.biased("classifier", ASPP_CHANNELS, num_classes)
    return tuple(table.layers)


def _aspp(table: LayerTable, in_channels: int, rates: tuple[int, ...]) -> None:
    table.conv("aspp.branches.0", in_channels, ASPP_CHANNELS)
    for index, _ in enumerate(rates, 1):
        table.conv(f"aspp.branches.{index}", in_channels, ASPP_CHANNELS, kernel=3)
    with table.pooled():
        table.conv("aspp.pooled", in_channels, ASPP_CHANNELS)
    table.conv("aspp.project", (2 + len(rates)) * ASPP_CHANNELS, ASPP_CHANNELS)


def lraspp_v3_layers(
    alpha: float, resolution: int, num_classes: int = VOC_CLASSES
) -> tuple[LayerSpec, ...]:
    """Lay out LR-ASPP on V3-Large."""
    del alpha
    table = LayerTable(resolution)
    blocks = atrous_v3_blocks()
    table.conv("stem", 3, v3_stem_channels(1.0), kernel=3, stride=2)
    table.blocks(blocks)
    low, high = blocks[LOW_BLOCK], blocks[-1]
    low_size = next(
        layer.out_size for layer in table.layers if layer.name == f"blocks.{LOW_BLOCK}.project"
    )
    table.conv("reduce", high.out_channels, LRASPP_CHANNELS)
    with table.pooled():
        table.bare("scale", high.out_channels, LRASPP_CHANNELS)
    with table.at(low_size):
        table.biased("low_classifier", low.out_channels, num_classes)
        table.biased("high_classifier", LRASPP_CHANNELS, num_classes)
    return tuple(table.layers)
