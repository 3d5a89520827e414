"""Networks with fewer channels than their family's: they are what their weights' shapes say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tvm_mobilenet.errors import WeightsError

__all__ = ["fit_widths"]


def fit_widths(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Give every layer of a module the channels that its weights have.

    A depthwise convolution stays one, whatever its width.

    Args:
        module: changed in place; its weights are left as they fall.
        state: weights in our layout.
        path: their file, for messages.

    Raises:
        WeightsError: the widths do not fit each other.
    """
    for name, child in module.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(child, nn.Conv2d) and weight.ndim == 4:
            is_depthwise = child.groups > 1
            child.out_channels = weight.shape[0]
            child.in_channels = weight.shape[0] if is_depthwise else weight.shape[1]
            child.groups = weight.shape[0] if is_depthwise else 1
        elif isinstance(child, nn.BatchNorm2d):
            child.num_features = weight.shape[0]
        elif isinstance(child, nn.Linear) and weight.ndim == 2:
            child.out_features, child.in_features = weight.shape
        else:
            continue
        for key, value in (*child.named_parameters(recurse=False), *child.named_buffers()):
            given = state.get(f"{name}.{key}")
            if given is not None and given.shape != value.shape:
                fitted = torch.zeros(given.shape)
                if isinstance(value, nn.Parameter):
                    setattr(child, key, nn.Parameter(fitted))
                else:
                    child.register_buffer(key, fitted)
    _check(module, path)


def _check(module: nn.Module, path: Path) -> None:
    """Run a picture through the network, of the smallest size and in evaluation."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            module(torch.zeros(1, 3, 32, 32))
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[0]
        raise WeightsError(
            f"weights {path}: the widths of its layers do not fit each other ({reason}); prune the "
            "model again"
        ) from err
    finally:
        module.train(was_training)
