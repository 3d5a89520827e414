"""What the torch modules of all families share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import nn

from tvm_mobilenet.models.publishers import Publisher

__all__ = ["Network"]


class Network(nn.Module):
    """A network over preprocessed pictures, (N, 3, H, W) f32.

    A classifier computes (N, num_classes) f32 logits; the other tasks' base classes say what theirs
    compute.
    """

    FAMILY: ClassVar[str]
    """Name in `spec.FAMILIES`."""

    def __init__(self, alpha: float, num_classes: int) -> None:
        super().__init__()
        self.alpha = alpha
        self.num_classes = num_classes

    @classmethod
    def publishers(cls) -> tuple[Publisher, ...]:
        """Return whose weights can be read beside our own, and how they name things."""
        raise NotImplementedError

    def shared_norms(self) -> Iterator[nn.BatchNorm2d]:
        """Yield the batch norms whose epsilon a weight file and its publisher name."""
        return (child for child in self.modules() if isinstance(child, nn.BatchNorm2d))

    @classmethod
    def classes_in(cls, state: Mapping[str, torch.Tensor]) -> int | None:
        """Count the classes of weights in our layout; None where they do not show it."""
        weight = state.get("classifier.weight")
        return weight.shape[0] if weight is not None and weight.ndim == 2 else None

    @classmethod
    def is_of_classes(cls, key: str) -> bool:
        """Tell whether the shape of a tensor depends on the number of classes."""
        return key.startswith("classifier.")

    def settle_random(self) -> None:
        """Adjust seeded random weights to what the network is for."""

    @classmethod
    def alpha_of(cls, state: Mapping[str, torch.Tensor]) -> float | None:
        """Read the width multiplier off weights in our layout; None where they do not show it."""
        from tvm_mobilenet.models.spec import FAMILIES, MODELS

        found = {key: value.shape[0] for key, value in state.items() if value.ndim == 4}
        for spec in MODELS.values():
            if spec.family != cls.FAMILY:
                continue
            layers = FAMILIES[cls.FAMILY].layers(spec.alpha, spec.resolution, 1)
            widths = {f"{layer.name}.conv.weight": layer.out_channels for layer in layers}
            if all(found.get(key, width) == width for key, width in widths.items()):
                return spec.alpha if found else None
        return None
