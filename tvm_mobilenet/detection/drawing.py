"""Boxes drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Label", "draw_boxes"]

Label = tuple[str, tuple[float, float, float, float], int]
"""Text, left, top, right and bottom in pixels, and the class, which decides the colour."""

# Okabe and Ito's palette, which most kinds of colour-blindness tell apart.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_DARK = ("#0072B2",)
_SIDE_OF_A_LINE = 200
"""The frame is one pixel wide for each so many of the picture's short side, at least two."""


def draw_boxes(image: Image.Image, labels: Sequence[Label]) -> Image.Image:
    """Return a copy of a picture with framed and labelled boxes, the first on top."""
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    width = max(2, min(drawn.size) // _SIDE_OF_A_LINE)
    letters = max(10, 6 * width)
    font = ImageFont.load_default(size=letters)
    for text, box, index in reversed(labels):
        colour = _COLOURS[index % len(_COLOURS)]
        draw.rectangle(box, outline=colour, width=width)
        left, top = box[0], max(0.0, box[1] - letters - 2 * width)
        extent = draw.textbbox((left + width, top), text, font=font)
        draw.rectangle((left, top, extent[2] + width, extent[3] + width), fill=colour)
        ink = "white" if colour in _DARK else "black"
        draw.text((left + width, top), text, fill=ink, font=font)
    return drawn
