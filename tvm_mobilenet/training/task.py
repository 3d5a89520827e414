"""What a model is trained for: the pictures, the loss and the measure of success.

The loop in `loop.py` asks a task for these and knows nothing else of it. A further task is a class
here in the folder with these members, and a line in `tasks.py`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tvm_mobilenet.models.weights import Module
from tvm_mobilenet.records import ClassList, Preprocessing
from tvm_mobilenet.training.recipe import Recipe

__all__ = ["Indices", "Task", "batches", "channels_last"]

Indices = npt.NDArray[np.int64]


class Task(Protocol):
    """One data set, and how a module learns from it and is judged on it."""

    @property
    def measure(self) -> str:
        """Name of the measure of success, from 0 to 1 and larger when better: `accuracy`."""

    @property
    def recipe(self) -> Recipe:
        """What the papers recommend for it."""

    @property
    def epochs(self) -> int:
        """Passes over the training pictures when nothing is said."""

    @property
    def data_name(self) -> str:
        """Name or path of the data set."""

    @property
    def data_sha256(self) -> str:
        """Hash that tells this data set from another."""

    @property
    def class_names(self) -> ClassList:
        """Names of the classes, in the order of the model's outputs."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared for the model."""

    @property
    def train_images(self) -> int:
        """Count the pictures to train on."""

    @property
    def held_out_images(self) -> int:
        """Count the pictures to judge on."""

    def new_module(self, recipe: Recipe, seed: int) -> Module:
        """Build the module with seeded weights, ready to be trained."""

    def loss(
        self, module: nn.Module, indices: Indices, recipe: Recipe, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the mean loss over some training pictures, augmented with numbers of `rng`."""

    def evaluate(self, module: nn.Module) -> tuple[float, float]:
        """Return the mean loss and the measure of success on the held-out pictures."""


def batches(indices: Indices, size: int) -> list[Indices]:
    """Cut into batches; a last, shorter one is left out unless it is the only one."""
    full = len(indices) // size
    return [indices[i * size : (i + 1) * size] for i in range(full)] or [indices]


def channels_last(x: npt.NDArray[np.float32]) -> torch.Tensor:
    """Hand an NCHW array to torch in the memory order its CPU convolutions are fastest in."""
    return torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
