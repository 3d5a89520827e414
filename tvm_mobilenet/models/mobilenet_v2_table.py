"""The body of MobileNetV2 as the paper tabulates it; counted by `spec`, built by `mobilenet_v2`.

Reference: Sandler et al. 2018 (arXiv:1801.04381), table 2; rounding of widths as in TF-Slim's
`mobilenet/mobilenet_v2.py`.
"""

from __future__ import annotations

from tvm_mobilenet.models.bottleneck_table import BottleneckSpec, LayerTable, make_divisible
from tvm_mobilenet.models.layers import LayerSpec

__all__ = ["ROWS", "head_channels", "mobilenet_v2_layers", "stem_channels", "v2_blocks"]

# Each row: so many inverted residuals, the first of them with this stride.
#     (expansion t, channels c, repeats n, stride s)
ROWS: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def stem_channels(alpha: float) -> int:
    """Return the width of the first layer, a full 3x3 convolution of stride 2."""
    return make_divisible(32 * alpha)


def head_channels(alpha: float) -> int:
    """Return the width of the last convolution, which a multiplier below 1 leaves alone.

    Section 6.1 of the paper: for multipliers less than one, all layers but the last are scaled.
    """
    return make_divisible(1280 * max(1.0, alpha))


def v2_blocks(alpha: float) -> tuple[BottleneckSpec, ...]:
    """Lay out the seventeen inverted residuals."""
    blocks = []
    width = stem_channels(alpha)
    for stage, (expansion, channels, repeats, stride) in enumerate(ROWS):
        out_channels = make_divisible(channels * alpha)
        for index in range(repeats):
            blocks.append(
                BottleneckSpec(
                    in_channels=width,
                    expanded=width * expansion,
                    out_channels=out_channels,
                    activation="relu6",
                    expand_kernel=1 if expansion > 1 else 0,
                    stride=stride if index == 0 else 1,
                    stage=stage,
                )
            )
            width = out_channels
    return tuple(blocks)


def mobilenet_v2_layers(
    alpha: float, resolution: int, num_classes: int = 1000
) -> tuple[LayerSpec, ...]:
    """Lay out every layer that holds parameters, in the order of execution."""
    table = LayerTable(resolution)
    blocks, head = v2_blocks(alpha), head_channels(alpha)
    table.conv("stem", 3, stem_channels(alpha), kernel=3, stride=2)
    table.blocks(blocks)
    table.conv("head", blocks[-1].out_channels, head)
    table.dense("classifier", head, num_classes)
    return tuple(table.layers)
