"""Training to detect: digits of scikit-learn in scenes that are made on the spot.

Default boxes are matched with what is on the picture, offsets learnt by smooth L1 and classes by
cross-entropy with three times as many negatives as positives, the hardest ones.

Reference: Liu et al. 2016 (arXiv:1512.02325), section 2.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tvm_mobilenet.datasets import DIGITS
from tvm_mobilenet.detection.average_precision import average_precision
from tvm_mobilenet.detection.scenes import Scenes, SceneSet, digit_scenes
from tvm_mobilenet.detection.suppression import CENTRE_SCALE, SIZE_SCALE, Detections, suppress
from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.models.spec import ModelSpec
from tvm_mobilenet.models.ssd import Ssd
from tvm_mobilenet.models.weights import Module, new_module
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.records import ClassList, Preprocessing
from tvm_mobilenet.training.initial import draw_weights
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.task import Indices, channels_last

__all__ = ["Detection", "detect_scenes", "encode", "match"]

_EPOCHS = 40
_MATCHED = 0.5
"""Overlap from which on a default box is positive."""
_NEGATIVES = 3
"""So many negatives for each positive."""
_HEAD_DEVIATION = 0.03
"""Of the weights of extra layers and heads, as in torchvision's SSDLite."""
_EVALUATION_BATCH = 64


class Detection:
    """Boxes and classes of several objects in a picture, judged by mean average precision."""

    measure = "mAP"

    def __init__(self, spec: ModelSpec, scenes: SceneSet) -> None:
        self._spec = spec
        self._scenes = scenes
        # A batch norm on a map of one pixel needs a batch that is not too small.
        self.recipe = Recipe(batch_size=32, learning_rate=0.004, warm_up_epochs=2)
        self.epochs = _EPOCHS
        self._targets: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._defaults: npt.NDArray[np.float32] | None = None

    @classmethod
    def open(cls, spec: ModelSpec, data: str | Path, progress: Progress) -> Detection:
        """Make the scenes.

        Raises:
            InputFileError: other data than the digits were asked for.
        """
        if str(data) != DIGITS:
            raise InputFileError(
                f"data {str(data)!r}: detectors are trained on {DIGITS!r} alone, pasted into "
                "scenes; train others in torch and give their weights with --weights"
            )
        progress.start("making scenes")
        scenes = digit_scenes(spec.resolution)
        progress.done()
        return cls(spec, scenes)

    @property
    def data_name(self) -> str:
        """`digits`."""
        return DIGITS

    @property
    def data_sha256(self) -> str:
        """Hash over the scenes."""
        return self._scenes.fingerprint

    @property
    def class_names(self) -> ClassList:
        """Names of the classes, the background left out."""
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
        """Build the detector with seeded weights, ready to be trained."""
        generator = torch.Generator().manual_seed(seed)
        module = draw_weights(new_module(self._spec, len(self.class_names)), recipe, generator)
        for name, child in module.named_modules():
            if isinstance(child, nn.Conv2d) and name.startswith("heads."):
                nn.init.normal_(child.weight, 0, _HEAD_DEVIATION, generator=generator)
        return module

    def loss(
        self, module: nn.Module, indices: Indices, recipe: Recipe, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the loss over some scenes, summed over boxes, a positive one's share."""
        del recipe, rng  # the scenes themselves are random
        scenes = self._scenes.train
        offsets, logits = module(channels_last(scenes.inputs(indices)))
        targets = [self._target(module, int(index)) for index in indices]
        labels = torch.stack([labels for labels, _ in targets])
        wanted = torch.stack([wanted for _, wanted in targets])
        return multibox_loss(offsets, logits, labels, wanted)

    def _target(self, module: nn.Module, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self._targets:
            assert isinstance(module, Ssd)
            if self._defaults is None:
                self._defaults = module.default_boxes(self._spec.resolution)
            true = self._scenes.train.true[index]
            matched = match(self._defaults, true.boxes)
            labels = np.where(matched >= 0, true.classes[matched] + 1, 0)
            self._targets[index] = (
                torch.from_numpy(labels),
                torch.from_numpy(encode(true.boxes[matched], self._defaults)),
            )
        return self._targets[index]

    def evaluate(self, module: nn.Module) -> tuple[float, float]:
        """Return 1 - mAP at an overlap of a half, and COCO's mAP, on the held-out scenes."""
        assert isinstance(module, Ssd)
        scenes = self._scenes.held_out
        found = detect_scenes(module, scenes)
        judged = average_precision(found, scenes.true, len(self.class_names))
        return 1 - judged.at_half, judged.mean


def detect_scenes(module: Ssd, scenes: Scenes) -> list[Detections]:
    """Run a detector in torch, and the suppression in numpy, on every scene."""
    defaults = module.default_boxes(scenes.preprocessing.crop)
    module.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(scenes), _EVALUATION_BATCH):
            indices = np.arange(start, min(start + _EVALUATION_BATCH, len(scenes)))
            offsets, logits = module(channels_last(scenes.inputs(indices)))
            for each in range(len(indices)):
                found.append(
                    suppress(
                        offsets[each].numpy(), logits[each].numpy(), defaults, module.suppression()
                    )
                )
    return found


def multibox_loss(
    offsets: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Return smooth L1 of the positives and cross-entropy with hard negatives, for each positive.

    Shapes:
        offsets, wanted (N, boxes, 4) f32, logits (N, boxes, 1 + classes) f32, labels (N, boxes) i64
        with 0 for the background -> () f32
    """
    positive = labels > 0
    count = positive.sum(1)
    box_loss = nn.functional.smooth_l1_loss(offsets[positive], wanted[positive], reduction="sum")
    class_loss = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    negative_loss = class_loss.masked_fill(positive, -1.0)
    rank = negative_loss.argsort(1, descending=True).argsort(1)
    chosen = positive | (rank < _NEGATIVES * count.unsqueeze(1))
    return (box_loss + class_loss[chosen].sum()) / max(1, int(count.sum()))


def match(
    defaults: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Return for each default box the true one that it stands for, or -1.

    Each true box gets the default one that overlaps it most, whatever that is.

    Shapes:
        defaults (boxes, 4) f32 centre and size, boxes (n, 4) f32 corners -> (boxes,) i64
    """
    from tvm_mobilenet.detection.suppression import overlap

    half = defaults[:, 2:] / 2
    corners = np.concatenate([defaults[:, :2] - half, defaults[:, :2] + half], axis=1)
    shared = np.stack([overlap(box, corners) for box in boxes])
    matched = np.where(shared.max(axis=0) > _MATCHED, shared.argmax(axis=0), -1)
    for index in range(len(boxes)):
        matched[shared[index].argmax()] = index
    return matched


def encode(
    boxes: npt.NDArray[np.float32], defaults: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the offsets that turn default boxes into boxes: what `decode_boxes` undoes.

    Shapes:
        boxes (n, 4) f32 corners, defaults (n, 4) f32 centre and size -> (n, 4) f32
    """
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    shift = (centres - defaults[:, :2]) / defaults[:, 2:] / CENTRE_SCALE
    growth = np.log(sizes / defaults[:, 2:]) / SIZE_SCALE
    encoded: npt.NDArray[np.float32] = np.concatenate([shift, growth], axis=1).astype(np.float32)
    return encoded
