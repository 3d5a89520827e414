"""The weights that a training begins with."""

from __future__ import annotations

import torch
from torch import nn

from tvm_mobilenet.models.weights import Module
from tvm_mobilenet.training.recipe import Recipe

__all__ = ["draw_weights"]


def draw_weights(module: Module, recipe: Recipe, generator: torch.Generator) -> Module:
    """Draw the weights, layer by layer in the module's order, and prepare it for training.

    Convolutions after He et al. 2015 (arXiv:1502.01852), dense layers as TF-Slim draws them.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, 0, 0.01, generator=generator)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            child.momentum = recipe.batch_norm_momentum
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
