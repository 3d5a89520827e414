"""Scenes that are drawn on the spot: scikit-learn's digits on a textured canvas, with masks.

Each is drawn from a random generator of its own: the same number gives the same scene. Those to
train on and those held out show different scans.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mobilenet.datasets import DIGITS, load_dataset
from tvm_mobilenet.models.preprocess import default_preprocessing
from tvm_mobilenet.records import ClassList, Preprocessing

__all__ = ["SceneSplit", "Scenes", "load_scenes"]

_TRAIN_SCENES = 512
_HELD_OUT_SCENES = 64
_MOST_DIGITS = 3
_INK = 96
"""A scan's grey from which on a pixel belongs to the digit."""
_HUE_JITTER = 0.02
"""Every digit has a colour that it is mostly written in, as things of a kind do: a network finds
something to go by within minutes."""
_TEXTURE = 6
"""Side of the grid of random colours that the canvas is blown up from."""


@dataclass(frozen=True)
class SceneSplit:
    """Scenes of some scans; drawn when they are asked for."""

    scans: npt.NDArray[np.uint8]
    """(N, 8, 8), greys."""
    labels: npt.NDArray[np.int64]
    count: int
    side: int
    seed: int

    def __len__(self) -> int:
        """Count the scenes."""
        return self.count

    @cached_property
    def _drawn(self) -> dict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        return {}

    def scene(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return a picture, (side, side, 3), and the class of each of its pixels, (side, side)."""
        if index not in self._drawn:
            self._drawn[index] = self._draw(np.random.default_rng([self.seed, index]))
        return self._drawn[index]

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        side = self.side
        grid = rng.integers(0, 128, (_TEXTURE, _TEXTURE, 3), np.uint8)
        canvas = np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))
        pixels = canvas.astype(np.float32) + rng.normal(0, 8, canvas.shape)
        mask = np.zeros((side, side), np.uint8)
        for _ in range(rng.integers(1, _MOST_DIGITS + 1)):
            which = int(rng.integers(len(self.labels)))
            size = int(rng.integers(side // 3, side * 2 // 3))
            scan = Image.fromarray(self.scans[which]).resize((size, size), Image.Resampling.BICUBIC)
            grey = np.asarray(scan, np.float32)
            top, left = rng.integers(0, side - size + 1, 2).tolist()
            place = np.s_[top : top + size, left : left + size]
            ink = grey >= _INK
            hue = self.labels[which] / 10 + rng.uniform(-_HUE_JITTER, _HUE_JITTER)
            colour = np.multiply(colorsys.hsv_to_rgb(hue % 1, 0.7, rng.uniform(0.7, 1)), 255)
            pixels[place] = np.where(
                ink[..., None], colour * (grey[..., None] / 510 + 0.5), pixels[place]
            )
            mask[place] = np.where(ink, self.labels[which] + 1, mask[place])
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8), mask


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Training and held-out scenes."""

    class_names: ClassList
    preprocessing: Preprocessing
    train: SceneSplit
    held_out: SceneSplit
    fingerprint: str
    """Hash over the scans and what else the scenes are drawn from."""


def load_scenes(
    resolution: int, *, train: int = _TRAIN_SCENES, held_out: int = _HELD_OUT_SCENES
) -> Scenes:
    """Prepare scenes of a side; class 0 is the canvas, class 1 the digit 0 and so on."""
    digits = load_dataset(DIGITS, resolution=resolution)
    hashed = hashlib.sha256(f"{digits.fingerprint} {resolution} {train} {held_out}".encode())
    splits = []
    for seed, (part, count) in enumerate(((digits.train, train), (digits.held_out, held_out))):
        scans = np.stack([np.asarray(source)[..., 0] for source in part.sources])
        splits.append(SceneSplit(scans, part.labels, count, resolution, seed))
    return Scenes(
        class_names=("canvas", *digits.class_names),
        preprocessing=default_preprocessing(resolution, "segmentation"),
        train=splits[0],
        held_out=splits[1],
        fingerprint=hashed.hexdigest(),
    )
