"""The papers' recipe, and the optimizer and the learning rates that it means.

RMSProp (or SGD) with momentum, a learning rate that decays exponentially, L2 decay on everything
but depthwise weights and batch norms, hardly any dropout and light augmentation, because small
networks overfit little.

Reference: Howard et al. 2017 (arXiv:1704.04861), section 4; TF-Slim's `mobilenet_v1_train.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Recipe", "learning_rate", "new_optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained, besides data, epochs and seed."""

    optimizer: Literal["rmsprop", "sgd"] = "rmsprop"
    batch_size: int = 64
    learning_rate: float = 0.01
    """Where the decay begins."""
    final_learning_rate_share: float = 0.01
    """In the last epoch, as a share of `learning_rate`; exponential between."""
    warm_up_epochs: int = 3
    """Epochs over which the rate rises: RMSProp's averages mislead it at first."""
    momentum: float = 0.9
    rmsprop_decay: float = 0.9
    rmsprop_eps: float = 1e-3
    weight_decay: float = 4e-5
    """TF-Slim's; on neither depthwise weights nor batch norms, as the paper advises."""
    dropout: float | None = None
    """Share of the features before the classifier; None for the family's own, 0.001 for V1 and 0.2
    for the others, as in TF-Slim."""
    batch_norm_momentum: float = 0.1
    """TF-Slim's 0.0003 averages over more steps than a short training has."""
    rotation_deg: float = 12.0
    """Largest rotation either way."""
    zoom: float = 0.1
    """Largest change of scale either way, as a natural logarithm."""
    shift: float = 0.1
    """Largest shift either way, as a share of the side."""


def new_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the recipe's optimizer, which spares depthwise weights and batch norms the decay."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for child in module.modules():
        is_depthwise = isinstance(child, nn.Conv2d) and child.groups > 1
        group = spared if is_depthwise or isinstance(child, nn.BatchNorm2d) else decayed
        group += child.parameters(recurse=False)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.RMSprop(
        groups,
        lr=recipe.learning_rate,
        alpha=recipe.rmsprop_decay,
        eps=recipe.rmsprop_eps,
        momentum=recipe.momentum,
    )


def learning_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch, counted from 0: it rises first and then decays."""
    progress = epoch / (epochs - 1) if epochs > 1 else 0.0
    risen = min(1.0, (epoch + 1) / recipe.warm_up_epochs) if recipe.warm_up_epochs else 1.0
    rate: float = recipe.learning_rate * recipe.final_learning_rate_share**progress * risen
    return rate
