"""`tvm-mobilenet models`."""

from __future__ import annotations

from tvm_mobilenet.cli.console import print_json, print_line, print_table
from tvm_mobilenet.cli.options import AsJson


def models(as_json: AsJson = False) -> None:
    """List the models: size, multiply-adds, published accuracy.

    Accuracy is ImageNet's, as published for the authors' own weights. Any other width and
    resolution can be named too, such as mobilenet_v2_0.6_160.
    """
    from tvm_mobilenet.models.spec import FAMILIES, list_models

    rows = list_models()
    if as_json:
        print_json(rows)
        return
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    print_table(
        ("model", "parameters", "multiply-adds", "published top-1", "size on disk", ""),
        [
            (
                row.name,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e6:.0f} M",
                f"{row.published_top1:.1f} %",
                f"{row.size_bytes / 1e6:.1f} MB",
                f"({notes.index(row.note) + 1})" if row.note else "",
            )
            for row in rows
        ],
    )
    for number, note in enumerate(notes, start=1):
        print_line(f"({number}) {note}")
    for family in FAMILIES.values():
        print_line(f"{family.name}: {family.params_note}")
