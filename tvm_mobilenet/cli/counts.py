"""How an instruction count is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mobilenet.cli.console import print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm_mobilenet.count import InstructionCount

__all__ = ["print_counts"]


def print_counts(found: InstructionCount) -> None:
    """Write the total, the classes and every layer to stdout."""
    print_line(
        f"{found.model} for {found.target}, emulated {found.emulated_cpu}, {found.threads} thread"
    )
    total = found.instructions_per_inference
    print_line(
        f"{total} instructions per inference, the same {found.repeat} times; "
        f"{_ratio(total, found.floor)} for each multiply-add it is worth"
    )
    print_line("instructions are no time; see docs/emulation.md")
    names = list(found.classes)
    rows: list[tuple[object, ...]] = [
        (
            layer.index,
            layer.family,
            layer.kernel,
            layer.tensor,
            layer.instructions,
            *(layer.classes[name] for name in names),
            _ratio(layer.instructions, layer.floor),
        )
        for layer in found.layers
    ]
    rows.append(_sum_row("outside", found.outside_layers, {}, names, ""))
    rows.append(_sum_row("total", total, found.classes, names, _ratio(total, found.floor)))
    columns = ("layer", "family", "kernel", "tensor", "instructions", *names, "per fma")
    print_table(columns, rows)


def _sum_row(
    title: str, instructions: int, classes: Mapping[str, int], names: list[str], ratio: str
) -> tuple[object, ...]:
    return ("", title, "", "", instructions, *(classes.get(name) for name in names), ratio)


def _ratio(instructions: int, floor: float) -> str:
    return f"{instructions / floor:.3f}" if floor else ""
