"""The blocks of V2, V3 and V4 as torch modules, each made from its record in `bottleneck_table`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from tvm_mobilenet.models.bottleneck_table import Activation, BlockSpec, BottleneckSpec

__all__ = ["Bottleneck", "SqueezeExcite", "conv_bn_act", "make_block", "pad_like_tensorflow"]

BATCH_NORM_EPS = 1e-3
"""TF-Slim's and the model garden's. torchvision has it for V3, timm only for TensorFlow's."""
BATCH_NORM_MOMENTUM = 0.01
"""The papers' decay of 0.99 in torch's spelling; short trainings raise it."""

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard-swish": nn.Hardswish,
}


class _Conv2d(nn.Conv2d):
    """A convolution that can be told to pad as TensorFlow's SAME does."""

    pads_like_tensorflow = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve; a stride-2 layer's padding may be larger at the bottom and the right."""
        if not self.pads_like_tensorflow or self.stride == (1, 1):
            return super().forward(x)
        (rows, columns), kernel, stride = x.shape[2:], self.kernel_size, self.stride
        pads: list[int] = []
        for extent, taps, step in ((columns, kernel[1], stride[1]), (rows, kernel[0], stride[0])):
            total = max((-(-extent // step) - 1) * step + taps - extent, 0)
            pads += [total // 2, total - total // 2]
        padded = nn.functional.pad(x, pads)
        return nn.functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def pad_like_tensorflow(module: nn.Module, on: bool) -> None:
    """Let every convolution of a module pad as TensorFlow does, or evenly."""
    for child in module.modules():
        if isinstance(child, _Conv2d):
            child.pads_like_tensorflow = on


def activation(name: Activation) -> nn.Module:
    """Make an activation."""
    return _ACTIVATIONS[name](inplace=True)


def conv_bn_act(
    in_channels: int,
    out_channels: int,
    act: Activation | None,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Make convolution, batch norm and perhaps an activation."""
    conv = _Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    norm = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=norm)
    if act is not None:
        parts["act"] = activation(act)
    return nn.Sequential(parts)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels.

    Reference: Hu et al. 2018 (arXiv:1709.01507), with V3's hard sigmoid (arXiv:1905.02244,
    section 5.2).
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the channels of (N, C, H, W)."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(means))))


class Bottleneck(nn.Sequential):
    """Whichever of start, expand, depthwise, squeeze and project a block has, in this order."""

    def __init__(self, block: BottleneckSpec) -> None:
        width, expanded, act = block.in_channels, block.expanded, block.activation
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if block.start_kernel:
            parts["start"] = conv_bn_act(
                width,
                width,
                None,
                kernel=block.start_kernel,
                stride=block.start_stride,
                groups=width,
            )
        if block.expand_kernel:
            parts["expand"] = conv_bn_act(
                width, expanded, act, kernel=block.expand_kernel, stride=block.expand_stride
            )
        if block.kernel:
            parts["depthwise"] = conv_bn_act(
                expanded,
                expanded,
                act,
                kernel=block.kernel,
                stride=block.stride,
                groups=expanded,
                dilation=block.dilation,
            )
        if block.squeeze:
            parts["squeeze"] = SqueezeExcite(expanded, block.squeeze)
        parts["project"] = conv_bn_act(expanded, block.out_channels, None)
        super().__init__(parts)
        self.is_residual = block.is_residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block, and add its input where the shapes are the same."""
        y = super().forward(x)
        return x + y if self.is_residual else y


def make_block(block: BlockSpec) -> nn.Module:
    """Make the module of one block."""
    if isinstance(block, BottleneckSpec):
        return Bottleneck(block)
    return conv_bn_act(
        block.in_channels,
        block.out_channels,
        block.activation,
        kernel=block.kernel,
        stride=block.stride,
    )
