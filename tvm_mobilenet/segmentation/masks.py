"""Masks as pictures: a class for every pixel, in Pascal VOC's colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["MAX_CLASSES", "Mask", "mask_picture", "overlay", "palette"]

Mask = npt.NDArray[np.uint8]
"""(H, W), the class of each pixel."""

MAX_CLASSES = 256
"""A PNG with a palette has no more colours."""
_OVERLAY_SHARE = 0.5


def palette() -> npt.NDArray[np.uint8]:
    """Return Pascal VOC's colour for each class, (256, 3); class 0, the background, is black.

    The bits of a class's number, three at a time, are the high bits of red, green and blue
    (Everingham et al. 2010; `VOClabelcolormap.m` of its development kit).
    """
    colours = np.zeros((MAX_CLASSES, 3), np.uint8)
    for index in range(MAX_CLASSES):
        rest = index
        for bit in range(7, -1, -1):
            for channel in range(3):
                colours[index, channel] |= (rest >> channel & 1) << bit
            rest >>= 3
    return colours


def mask_picture(mask: Mask) -> Image.Image:
    """Return a mask as a picture whose values are the classes, shown in their colours."""
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(palette().tobytes())
    return picture


def overlay(image: Image.Image, mask: Mask) -> Image.Image:
    """Lay the classes' colours over a picture of the mask's size; the background shines through."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    blended = pixels * (1 - _OVERLAY_SHARE) + palette()[mask] * _OVERLAY_SHARE
    shown = np.where((mask > 0)[..., None], blended, pixels)
    return Image.fromarray(np.round(shown).astype(np.uint8))
