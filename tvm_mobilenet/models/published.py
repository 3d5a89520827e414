"""The published figures of every family, read from `tvm_mobilenet/data`. Imports no torch."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["PublishedFigures", "published_figures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigures:
    """One row of a family's published table."""

    macs_m: float
    """Multiply-adds in millions."""
    params_m: float
    """Parameters in millions."""
    top1: float | None = None
    """A classifier's accuracy: ImageNet, percent, float32, single crop."""
    top5: float | None = None
    """The same; None where it was not published."""
    top1_int8: float | None = None
    """The same as `top1` after quantization-aware training to int8; None where not published."""
    mean_ap: float | None = None
    """A detector's mean average precision: COCO, percent, averaged over overlaps of 0.5 to 0.95."""
    mean_iou: float | None = None
    """A segmenter's mean intersection over union, percent."""


@cache
def published_figures(
    file_name: str, variant: str | None = None
) -> dict[tuple[float, int], PublishedFigures]:
    """Return the figures for each (alpha, resolution), in the order of the table.

    Args:
        file_name: in `tvm_mobilenet/data`.
        variant: of the rows to take where a file holds several, such as `large` or `conv_small`.
    """
    text = (resources.files("tvm_mobilenet") / "data" / file_name).read_text(encoding="utf-8")
    figures = {}
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    int8 = {row["variant"]: row.get("top1") for row in rows if variant is not None}
    for row in rows:
        alpha, resolution = row.get("alpha"), row.get("res")
        top1_int8 = row.get("top1_qat_int8")
        if variant is not None:
            # `large_0.75_float`, `small_minimalistic_float`, `conv_small`; int8 rows go with them.
            match = re.fullmatch(rf"{variant}(?:_([\d.]+))?(?:_float)?", row["variant"])
            if match is None:
                continue
            alpha = match[1] or alpha
            top1_int8 = int8.get(row["variant"].removesuffix("_float") + "_int8")
        figures[float(alpha or 1), int(resolution or 224)] = PublishedFigures(
            macs_m=float(row["macs_m"]),
            params_m=float(row["params_m"]),
            top1=_percent(row.get("top1")),
            top5=_percent(row.get("top5")),
            top1_int8=_percent(top1_int8),
            mean_ap=_percent(row.get("map")),
            mean_iou=_percent(row.get("miou")),
        )
    return figures


def _percent(text: str | None) -> float | None:
    return float(text) if text else None
