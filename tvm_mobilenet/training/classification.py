"""Training to classify: a folder of pictures for each class, or the digits inside scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from tvm_mobilenet.datasets import DIGITS, Dataset, Split, load_dataset
from tvm_mobilenet.models.preprocess import normalize
from tvm_mobilenet.models.spec import ModelSpec
from tvm_mobilenet.models.weights import Module, new_module
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.records import ClassList, Preprocessing
from tvm_mobilenet.training.initial import draw_weights
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.task import Indices, channels_last

__all__ = ["Classification", "augmented", "default_epochs", "evaluate"]

_DIGITS_EPOCHS = 40
_FOLDER_EPOCHS = 100
_EVALUATION_BATCH = 256


class Classification:
    """One class for each picture, learnt by cross-entropy and judged by accuracy."""

    measure = "accuracy"

    def __init__(self, spec: ModelSpec, data: str | Path, dataset: Dataset) -> None:
        self._spec = spec
        self._dataset = dataset
        self.recipe = Recipe()
        self.epochs = default_epochs(data)

    @classmethod
    def open(cls, spec: ModelSpec, data: str | Path, progress: Progress) -> Classification:
        """Open a data set of labelled pictures."""
        return cls(spec, data, load_dataset(data, resolution=spec.resolution, progress=progress))

    @property
    def data_name(self) -> str:
        """`digits`, or the folder's path."""
        return self._dataset.name

    @property
    def data_sha256(self) -> str:
        """Hash over the file names, sizes and labels; for `digits`, over the scans."""
        return self._dataset.fingerprint

    @property
    def class_names(self) -> ClassList:
        """Names of the classes in the order of the logits."""
        return self._dataset.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared for the model."""
        return self._dataset.preprocessing

    @property
    def train_images(self) -> int:
        """Count the pictures to train on."""
        return len(self._dataset.train)

    @property
    def held_out_images(self) -> int:
        """Count the pictures to judge on."""
        return len(self._dataset.held_out)

    def new_module(self, recipe: Recipe, seed: int) -> Module:
        """Build the classifier with seeded weights, ready to be trained."""
        options = {} if recipe.dropout is None else {"dropout": recipe.dropout}
        module = new_module(self._spec, len(self.class_names), **options)
        return draw_weights(module, recipe, torch.Generator().manual_seed(seed))

    def loss(
        self, module: nn.Module, indices: Indices, recipe: Recipe, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the cross-entropy of some training pictures, each augmented a little."""
        split = self._dataset.train
        pixels = augmented(split, indices, self._dataset.mirrored, recipe, rng)
        logits = module(channels_last(normalize(pixels, self.preprocessing)))
        return nn.functional.cross_entropy(logits, torch.from_numpy(split.labels[indices]))

    def evaluate(self, module: nn.Module) -> tuple[float, float]:
        """Return cross-entropy and accuracy on the held-out pictures."""
        return evaluate(module, self._dataset.held_out)


def default_epochs(data: str | Path) -> int:
    """Return how many epochs a data set is trained for when nothing is said."""
    return _DIGITS_EPOCHS if str(data) == DIGITS else _FOLDER_EPOCHS


def augmented(
    split: Split,
    indices: npt.NDArray[np.int64],
    mirrored: bool,
    recipe: Recipe,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """Turn, zoom, shift and perhaps mirror each picture a little, and cut it to size."""
    crop = split.preprocessing.crop
    out = []
    for pixels in split.pixels(indices):
        angle = math.radians(rng.uniform(-recipe.rotation_deg, recipe.rotation_deg))
        scale = math.exp(rng.uniform(-recipe.zoom, recipe.zoom))
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        flip = -1.0 if mirrored and rng.random() < 0.5 else 1.0
        shift_x, shift_y = rng.uniform(-recipe.shift, recipe.shift, 2) * crop
        # Where in the source an output pixel comes from; both are measured from their centres.
        half_out, half_in = crop / 2, pixels.shape[0] / 2
        a, b, c, d = flip * cos, -sin, flip * sin, cos
        matrix = (
            a, b, half_in + shift_x - (a + b) * half_out,
            c, d, half_in + shift_y - (c + d) * half_out,
        )  # fmt: skip
        image = Image.fromarray(pixels).transform(
            (crop, crop), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        out.append(np.asarray(image))
    return np.stack(out)


def evaluate(module: nn.Module, split: Split) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    module.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(split), _EVALUATION_BATCH):
            indices = np.arange(start, min(start + _EVALUATION_BATCH, len(split)))
            logits = module(channels_last(split.inputs(indices)))
            labels = torch.from_numpy(split.labels[indices])
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    return loss / len(split), right / len(split)
