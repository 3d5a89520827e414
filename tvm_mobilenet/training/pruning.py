"""Structured pruning: whole channels taken out of trained weights, for widths between the alphas.

Torch-Pruning finds which channels hang together (a depthwise convolution's, a residual's, those of
squeeze-and-excite) and takes out the groups of the smallest weights; fine-tuning is the training
loop's. Every width stays a multiple of 8, as the families' own are.

Reference: Fang et al. 2023 (arXiv:2301.12900), section 3; the measure of a group is that of Li et
al. 2017 (arXiv:1608.08710), section 3.1, with L2 in place of L1.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.models.network import Network

__all__ = ["PrunedNetwork", "check_share", "prune"]

_ROUND_TO = 8
_STEPS = 7
"""Of the search for the ratio: within a hundredth."""


@dataclass(frozen=True)
class PrunedNetwork:
    """A network with fewer channels, and what it costs."""

    module: Network
    macs: int
    """Multiply-adds of one inference at batch 1."""
    macs_before: int

    @property
    def share(self) -> float:
        """Of the multiply-adds, what is left."""
        return self.macs / self.macs_before


def check_share(share: float) -> None:
    """Refuse a share of the multiply-adds that cannot be kept.

    Raises:
        SpecError: it is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise SpecError(f"prune is {share:g}, but a share of the multiply-adds is between 0 and 1")


def prune(module: Network, resolution: int, share: float) -> PrunedNetwork:
    """Take channels out of a copy of a network until `share` of its multiply-adds is left.

    Every layer loses the same part of its channels, up to the rounding; classifiers keep their
    outputs. The last ratio that keeps no more than `share` is taken.

    Raises:
        SpecError: `share` is out of range, or less than the smallest widths come to.
    """
    check_share(share)
    before = _macs(module, resolution)
    low, high = 0.0, 1.0
    best: tuple[Network, int] | None = None
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        found = _without_channels(module, resolution, ratio)
        macs = _macs(found, resolution)
        if macs <= share * before:
            best, high = (found, macs), ratio
        else:
            low = ratio
    if best is None:
        raise SpecError(
            f"prune is {share:g}, but with {_ROUND_TO} channels in every layer more than that is "
            "left; choose a larger share, or a smaller model"
        )
    return PrunedNetwork(best[0], best[1], before)


def _without_channels(module: Network, resolution: int, ratio: float) -> Network:
    import torch_pruning  # type: ignore[import-untyped]

    copied = copy.deepcopy(module).eval()
    pruner = torch_pruning.pruner.BasePruner(
        copied,
        torch.zeros(1, 3, resolution, resolution),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=_outputs(copied),
        round_to=_ROUND_TO,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that it does not know; there are none
        pruner.step()
    return copied


def _outputs(module: Network) -> list[nn.Module]:
    """Return the layers whose outputs are classes."""
    return [
        child
        for name, child in module.named_modules()
        if name.endswith("classifier") and isinstance(child, nn.Conv2d | nn.Linear)
    ]


def _macs(module: Network, resolution: int) -> int:
    """Count as the layer tables do: the weights of every layer, for every pixel of its output."""
    total = 0

    def count(layer: nn.Conv2d | nn.Linear, _inputs: Any, out: torch.Tensor) -> None:
        nonlocal total
        pixels = out.shape[2] * out.shape[3] if out.ndim == 4 else 1
        total += layer.weight.numel() * pixels

    counted = copy.deepcopy(module).eval()
    for child in counted.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            child.register_forward_hook(count)
    with torch.inference_mode():
        counted(torch.zeros(1, 3, resolution, resolution))
    return total
