"""The body of MobileNetV1 as the paper tabulates it; counted by `spec`, built by `mobilenet_v1`.

Reference: Howard et al. 2017 (arXiv:1704.04861), table 1. The paper prints stride 2 for the last
depthwise layer, which its own 7x7 map contradicts; stride 1, as in TF-Slim.
"""

from __future__ import annotations

from tvm_mobilenet.models.layers import LayerSpec, halved

__all__ = ["BLOCKS", "STEM_CHANNELS", "channels", "mobilenet_v1_layers"]

STEM_CHANNELS = 32
"""Full 3x3 convolution, stride 2, from RGB."""

# Each row: a 3x3 depthwise convolution with this stride, then a pointwise one to so many channels.
#     (channels, stride)
BLOCKS: tuple[tuple[int, int], ...] = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


def channels(width: int, alpha: float) -> int:
    """Scale a layer's width by `alpha` as TF-Slim does for V1: rounded down, and at least 8.

    timm rounds to multiples of 8 instead. The two agree wherever `width * alpha` is a multiple of
    8, thus at 0.25, 0.5, 0.75, 1.0 and 1.25, which is all that either has published weights for.
    """
    return max(int(width * alpha), 8)


def mobilenet_v1_layers(
    alpha: float, resolution: int, num_classes: int = 1000
) -> tuple[LayerSpec, ...]:
    """Lay out every layer that holds parameters, in the order of execution."""
    size, width = halved(resolution), channels(STEM_CHANNELS, alpha)
    layers = [
        LayerSpec(
            name="stem",
            kind="conv",
            in_channels=3,
            out_channels=width,
            kernel=3,
            stride=2,
            in_size=resolution,
            out_size=size,
        )
    ]
    for index, (out_width, stride) in enumerate(BLOCKS):
        out_size = halved(size) if stride == 2 else size
        out_channels = channels(out_width, alpha)
        layers += [
            LayerSpec(
                name=f"blocks.{index}.depthwise",
                kind="depthwise",
                in_channels=width,
                out_channels=width,
                kernel=3,
                stride=stride,
                in_size=size,
                out_size=out_size,
            ),
            LayerSpec(
                name=f"blocks.{index}.pointwise",
                kind="pointwise",
                in_channels=width,
                out_channels=out_channels,
                in_size=out_size,
                out_size=out_size,
            ),
        ]
        size, width = out_size, out_channels
    layers.append(
        LayerSpec(name="classifier", kind="dense", in_channels=width, out_channels=num_classes)
    )
    return tuple(layers)
