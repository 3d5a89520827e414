"""Training to segment: scenes of digits that are drawn on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tvm_mobilenet.datasets import DIGITS
from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.models.preprocess import normalize
from tvm_mobilenet.models.spec import ModelSpec
from tvm_mobilenet.models.weights import Module, new_module
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.records import ClassList, Preprocessing
from tvm_mobilenet.segmentation.quality import IGNORED, mean_iou
from tvm_mobilenet.segmentation.scenes import Scenes, SceneSplit, load_scenes
from tvm_mobilenet.training.initial import draw_weights
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.task import Indices, channels_last

__all__ = ["SegmentationTask"]

_EPOCHS = 20
_EVALUATION_BATCH = 32


class SegmentationTask:
    """A class for each pixel, learnt by cross-entropy, judged by mean intersection over union."""

    measure = "mIoU"
    recipe = replace(Recipe(), batch_size=16)
    epochs = _EPOCHS
    data_name = DIGITS

    def __init__(self, spec: ModelSpec, scenes: Scenes) -> None:
        self._spec = spec
        self._scenes = scenes

    @classmethod
    def open(cls, spec: ModelSpec, data: str | Path, progress: Progress) -> SegmentationTask:
        """Prepare the scenes.

        Raises:
            InputFileError: another data set was asked for.
        """
        del progress
        if str(data) != DIGITS:
            raise InputFileError(
                f"data {str(data)!r}: segmenters are trained on {DIGITS!r} alone, drawn into "
                "scenes; train others in torch and give their weights with --weights"
            )
        return cls(spec, load_scenes(spec.resolution))

    @property
    def data_sha256(self) -> str:
        """Hash over what the scenes are drawn from."""
        return self._scenes.fingerprint

    @property
    def class_names(self) -> ClassList:
        """The canvas, and the ten digits."""
        return self._scenes.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared for the model."""
        return self._scenes.preprocessing

    @property
    def train_images(self) -> int:
        """Count the scenes to train on."""
        return len(self._scenes.train)

    @property
    def held_out_images(self) -> int:
        """Count the scenes to judge on."""
        return len(self._scenes.held_out)

    def new_module(self, recipe: Recipe, seed: int) -> Module:
        """Build the network with seeded weights, ready to be trained."""
        options = {} if recipe.dropout is None else {"dropout": recipe.dropout}
        module = new_module(self._spec, len(self.class_names), **options)
        return draw_weights(module, recipe, torch.Generator().manual_seed(seed))

    def loss(
        self, module: nn.Module, indices: Indices, recipe: Recipe, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the mean cross-entropy of the pixels of some scenes; places vary enough as is."""
        del recipe, rng
        x, labels = self._batch(self._scenes.train, indices)
        return nn.functional.cross_entropy(module(x), labels, ignore_index=IGNORED)

    def evaluate(self, module: nn.Module) -> tuple[float, float]:
        """Return cross-entropy and mean intersection over union on the held-out scenes."""
        module.eval()
        split = self._scenes.held_out
        loss, wanted, found = 0.0, [], []
        with torch.inference_mode():
            for start in range(0, len(split), _EVALUATION_BATCH):
                indices = np.arange(start, min(start + _EVALUATION_BATCH, len(split)))
                x, labels = self._batch(split, indices)
                scores = module(x)
                mean = nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED)
                loss += mean.item() * len(indices)
                wanted.append(labels.numpy())
                found.append(scores.argmax(1).numpy())
        quality = mean_iou(np.concatenate(wanted), np.concatenate(found), len(self.class_names))
        return loss / len(split), quality

    def _batch(self, split: SceneSplit, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [split.scene(int(index)) for index in indices]
        pixels = np.stack([picture for picture, _ in scenes])
        labels = np.stack([mask for _, mask in scenes]).astype(np.int64)
        return channels_last(normalize(pixels, self.preprocessing)), torch.from_numpy(labels)
