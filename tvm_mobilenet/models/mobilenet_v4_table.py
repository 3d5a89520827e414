"""The bodies of MobileNetV4-Conv as the paper tabulates them; built by `mobilenet_v4`.

Reference: Qin et al. 2024 (arXiv:2404.10518), the architecture tables of the appendix, as in
TensorFlow's model garden (`official/vision/modeling/backbones/mobilenet.py`).
"""

from __future__ import annotations

from typing import Literal

from tvm_mobilenet.models.bottleneck_table import (
    BlockSpec,
    BottleneckSpec,
    ConvSpec,
    LayerTable,
    make_divisible,
)
from tvm_mobilenet.models.layers import LayerSpec

__all__ = [
    "HEAD_CHANNELS",
    "STAGES",
    "STEM_CHANNELS",
    "Variant",
    "mobilenet_v4_layers",
    "v4_blocks",
]

Variant = Literal["conv_small", "conv_medium", "conv_large"]

_Conv = tuple[Literal["conv"], int, int, int]
_Fused = tuple[Literal["fused"], int, int, int]
_Universal = tuple[int, int, int, float, int]

# Each tuple is one stage. Its rows:
#     ("conv", kernel, stride, channels)       a full convolution
#     ("fused", stride, expansion, channels)   a 3x3 convolution that expands, and a projection
#     (first depthwise kernel, second depthwise kernel, stride, expansion, channels)
# The last is the universal inverted bottleneck. With both kernels it is what the paper calls
# ExtraDW, with the second alone the inverted bottleneck of V2, with the first alone ConvNext, with
# none of them a feed-forward network.
STAGES: dict[str, tuple[tuple[_Conv | _Fused | _Universal, ...], ...]] = {
    "conv_small": (
        (("conv", 3, 2, 32), ("conv", 1, 1, 32)),
        (("conv", 3, 2, 96), ("conv", 1, 1, 64)),
        (
            (5, 5, 2, 3, 96),
            (0, 3, 1, 2, 96),
            (0, 3, 1, 2, 96),
            (0, 3, 1, 2, 96),
            (0, 3, 1, 2, 96),
            (3, 0, 1, 4, 96),
        ),
        (
            (3, 3, 2, 6, 128),
            (5, 5, 1, 4, 128),
            (0, 5, 1, 4, 128),
            (0, 5, 1, 3, 128),
            (0, 3, 1, 4, 128),
            (0, 3, 1, 4, 128),
        ),
        (("conv", 1, 1, 960),),
    ),
    "conv_medium": (
        (("fused", 2, 4, 48),),
        ((3, 5, 2, 4, 80), (3, 3, 1, 2, 80)),
        (
            (3, 5, 2, 6, 160),
            (3, 3, 1, 4, 160),
            (3, 3, 1, 4, 160),
            (3, 5, 1, 4, 160),
            (3, 3, 1, 4, 160),
            (3, 0, 1, 4, 160),
            (0, 0, 1, 2, 160),
            (3, 0, 1, 4, 160),
        ),
        (
            (5, 5, 2, 6, 256),
            (5, 5, 1, 4, 256),
            (3, 5, 1, 4, 256),
            (3, 5, 1, 4, 256),
            (0, 0, 1, 4, 256),
            (3, 0, 1, 4, 256),
            (3, 5, 1, 2, 256),
            (5, 5, 1, 4, 256),
            (0, 0, 1, 4, 256),
            (0, 0, 1, 4, 256),
            (5, 0, 1, 2, 256),
        ),
        (("conv", 1, 1, 960),),
    ),
    "conv_large": (
        (("fused", 2, 4, 48),),
        ((3, 5, 2, 4, 96), (3, 3, 1, 4, 96)),
        (
            (3, 5, 2, 4, 192),
            (3, 3, 1, 4, 192),
            (3, 3, 1, 4, 192),
            (3, 3, 1, 4, 192),
            (3, 5, 1, 4, 192),
            (5, 3, 1, 4, 192),
            (5, 3, 1, 4, 192),
            (5, 3, 1, 4, 192),
            (5, 3, 1, 4, 192),
            (5, 3, 1, 4, 192),
            (3, 0, 1, 4, 192),
        ),
        (
            (5, 5, 2, 4, 512),
            (5, 5, 1, 4, 512),
            (5, 5, 1, 4, 512),
            (5, 5, 1, 4, 512),
            (5, 0, 1, 4, 512),
            (5, 3, 1, 4, 512),
            (5, 0, 1, 4, 512),
            (5, 0, 1, 4, 512),
            (5, 3, 1, 4, 512),
            (5, 5, 1, 4, 512),
            (5, 0, 1, 4, 512),
            (5, 0, 1, 4, 512),
            (5, 0, 1, 4, 512),
        ),
        (("conv", 1, 1, 960),),
    ),
}
STEM_CHANNELS = {"conv_small": 32, "conv_medium": 32, "conv_large": 24}
"""Full 3x3 convolution, stride 2, from RGB."""
HEAD_CHANNELS = 1280
"""1x1 convolution after the pool, with batch norm and ReLU."""


def v4_blocks(variant: Variant) -> tuple[BlockSpec, ...]:
    """Lay out the blocks between the stem and the pool."""
    blocks: list[BlockSpec] = []
    width = STEM_CHANNELS[variant]
    for stage, rows in enumerate(STAGES[variant]):
        for row in rows:
            block = _block(row, width, stage)
            blocks.append(block)
            width = block.out_channels
    return tuple(blocks)


def _block(row: _Conv | _Fused | _Universal, width: int, stage: int) -> BlockSpec:
    if row[0] == "conv":
        _, kernel, stride, channels = row
        return ConvSpec(
            in_channels=width,
            out_channels=channels,
            activation="relu",
            kernel=kernel,
            stride=stride,
            stage=stage,
        )
    if row[0] == "fused":
        _, stride, expansion, channels = row
        return BottleneckSpec(
            in_channels=width,
            expanded=make_divisible(width * expansion),
            out_channels=channels,
            activation="relu",
            expand_kernel=3,
            kernel=0,
            stride=stride,
            stage=stage,
        )
    start_kernel, kernel, stride, factor, channels = row
    return BottleneckSpec(
        in_channels=width,
        expanded=make_divisible(width * factor),
        out_channels=channels,
        activation="relu",
        kernel=kernel,
        start_kernel=start_kernel,
        stride=stride,
        stage=stage,
    )


def mobilenet_v4_layers(
    variant: Variant, resolution: int, num_classes: int = 1000
) -> tuple[LayerSpec, ...]:
    """Lay out every layer that holds parameters, in the order of execution."""
    table = LayerTable(resolution)
    blocks = v4_blocks(variant)
    table.conv("stem", 3, STEM_CHANNELS[variant], kernel=3, stride=2)
    table.blocks(blocks)
    table.pool()
    table.conv("head", blocks[-1].out_channels, HEAD_CHANNELS)
    table.dense("classifier", HEAD_CHANNELS, num_classes)
    return tuple(table.layers)
