"""`tvm-mobilenet models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet.cli.console import print_json, print_line, print_table
from tvm_mobilenet.cli.options import AsJson

if TYPE_CHECKING:
    from tvm_mobilenet.models.spec import ModelRow


def models(as_json: AsJson = False) -> None:
    """List the models: size, multiply-adds, published accuracy.

    Accuracy is as published for the authors' own weights: top-1 on ImageNet, mAP on COCO for
    detectors, mIoU for segmenters. Any other width and resolution can be named too, such as
    mobilenet_v2_0.6_160.
    """
    from tvm_mobilenet.models.spec import FAMILIES, list_models

    rows = list_models()
    if as_json:
        print_json(rows)
        return
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    print_table(
        ("model", "parameters", "multiply-adds", "published", "size on disk", ""),
        [
            (
                row.name,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e6:.0f} M",
                _accuracy(row),
                f"{row.size_bytes / 1e6:.1f} MB",
                f"({notes.index(row.note) + 1})" if row.note else "",
            )
            for row in rows
        ],
    )
    for number, note in enumerate(notes, start=1):
        print_line(f"({number}) {note}")
    for family in FAMILIES.values():
        if family.params_note:
            print_line(f"{family.name}: {family.params_note}")


def _accuracy(row: ModelRow) -> str:
    found = (
        (row.published_top1, "% top-1"),
        (row.published_map, "% mAP"),
        (row.published_miou, "% mIoU"),
    )
    return ", ".join(f"{value:.1f} {unit}" for value, unit in found if value is not None)
