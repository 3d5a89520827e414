"""The bodies of MobileNetV3 as the paper tabulates them; built by `mobilenet_v3`.

Reference: Howard et al. 2019 (arXiv:1905.02244), tables 1 and 2. What a width multiplier does, and
the minimalistic variants (no squeeze-and-excite, no hard-swish, no 5x5), are TF-Slim's
`mobilenet/mobilenet_v3.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tvm_mobilenet.models.bottleneck_table import (
    Activation,
    BlockSpec,
    BottleneckSpec,
    ConvSpec,
    LayerTable,
    make_divisible,
)
from tvm_mobilenet.models.layers import LayerSpec

__all__ = ["ROWS", "Variant", "head_channels", "mobilenet_v3_layers", "stem_channels", "v3_blocks"]

Variant = Literal["large", "large_minimalistic", "small", "small_minimalistic"]

_RE: Activation = "relu"
_HS: Activation = "hard-swish"

# Each row is one bottleneck.
#     (kernel, expansion size, channels, squeeze-and-excite, nonlinearity, stride)
ROWS: dict[str, tuple[tuple[int, int, int, bool, Activation, int], ...]] = {
    # Table 1, 112x112x16 in.
    "large": (
        (3, 16, 16, False, _RE, 1),
        (3, 64, 24, False, _RE, 2),
        (3, 72, 24, False, _RE, 1),
        (5, 72, 40, True, _RE, 2),
        (5, 120, 40, True, _RE, 1),
        (5, 120, 40, True, _RE, 1),
        (3, 240, 80, False, _HS, 2),
        (3, 200, 80, False, _HS, 1),
        (3, 184, 80, False, _HS, 1),
        (3, 184, 80, False, _HS, 1),
        (3, 480, 112, True, _HS, 1),
        (3, 672, 112, True, _HS, 1),
        (5, 672, 160, True, _HS, 2),
        (5, 960, 160, True, _HS, 1),
        (5, 960, 160, True, _HS, 1),
    ),
    # Table 2, 112x112x16 in.
    "small": (
        (3, 16, 16, True, _RE, 2),
        (3, 72, 24, False, _RE, 2),
        (3, 88, 24, False, _RE, 1),
        (5, 96, 40, True, _HS, 2),
        (5, 240, 40, True, _HS, 1),
        (5, 240, 40, True, _HS, 1),
        (5, 120, 48, True, _HS, 1),
        (5, 144, 48, True, _HS, 1),
        (5, 288, 96, True, _HS, 2),
        (5, 576, 96, True, _HS, 1),
        (5, 576, 96, True, _HS, 1),
    ),
}
_STEM_CHANNELS = 16
_LAST_CHANNELS = {"large": 960, "small": 576}
"""The 1x1 convolution before the pool."""
_HEAD_CHANNELS = {"large": 1280, "small": 1024}
"""The dense layer after the pool. The 2.9 M parameters that TF-Slim publishes for small are those
of 1280 there as well; its code and all released weights have 1024."""


def stem_channels(alpha: float) -> int:
    """Return the width of the first layer, a full 3x3 convolution of stride 2.

    Multipliers below 0.75, which the paper has no weights for, leave it alone: so do timm's.
    """
    return make_divisible(_STEM_CHANNELS * alpha) if alpha >= 0.75 else _STEM_CHANNELS


def head_channels(variant: Variant, alpha: float) -> int:
    """Return the width of the layer before the classifier; below 1 a multiplier leaves it alone."""
    return make_divisible(_HEAD_CHANNELS[variant.split("_")[0]] * max(1.0, alpha))


def activation_of(variant: Variant) -> Activation:
    """Return the nonlinearity of the stem, the last convolution and the head."""
    return _RE if variant.endswith("minimalistic") else _HS


def v3_blocks(variant: Variant, alpha: float) -> tuple[BlockSpec, ...]:
    """Lay out the bottlenecks and the 1x1 convolution after them."""
    size = variant.split("_")[0]
    blocks: list[BlockSpec] = []
    width = previous = _STEM_CHANNELS
    width = stem_channels(alpha)
    stage = -1
    for kernel, expansion, channels, has_squeeze, activation, stride in ROWS[size]:
        out_channels = make_divisible(channels * alpha)
        # TF-Slim scales what goes in and expands that by the factor of the unscaled table.
        is_expanded = expansion != previous or bool(blocks)
        expanded = make_divisible(width * expansion / previous) if is_expanded else width
        stage += channels != previous or not blocks
        block = BottleneckSpec(
            in_channels=width,
            expanded=expanded,
            out_channels=out_channels,
            activation=activation,
            expand_kernel=int(is_expanded),
            kernel=kernel,
            stride=stride,
            # Section 5.3: fixed to be a quarter of the expansion.
            squeeze=make_divisible(expanded / 4) if has_squeeze else 0,
            stage=stage,
        )
        if variant.endswith("minimalistic"):
            block = replace(block, kernel=3, squeeze=0, activation=_RE)
        blocks.append(block)
        width, previous = out_channels, channels
    blocks.append(
        ConvSpec(
            in_channels=width,
            out_channels=make_divisible(_LAST_CHANNELS[size] * alpha),
            activation=activation_of(variant),
            stage=stage + 1,
        )
    )
    return tuple(blocks)


def mobilenet_v3_layers(
    variant: Variant, alpha: float, resolution: int, num_classes: int = 1000
) -> tuple[LayerSpec, ...]:
    """Lay out every layer that holds parameters, in the order of execution."""
    table = LayerTable(resolution)
    blocks, head = v3_blocks(variant, alpha), head_channels(variant, alpha)
    table.conv("stem", 3, stem_channels(alpha), kernel=3, stride=2)
    table.blocks(blocks)
    table.dense("head.dense", blocks[-1].out_channels, head)
    table.dense("classifier", head, num_classes)
    return tuple(table.layers)
