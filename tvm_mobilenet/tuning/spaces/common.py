"""What the spaces of all families are written in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "Change",
    "Dimension",
    "at",
    "changed",
    "frozen_fault",
    "kind_fault",
    "range_fault",
    "register_fault",
    "split",
]

Change = dict[str, Any]
"""Fields and their new values: those that only make sense together."""
Dimension = tuple[tuple[str, ...], list[Change]]
"""Where in a plan, as names of its parts, and what may be put there."""


def at(path: tuple[str, ...], dimensions: list[list[Change]]) -> Iterator[Dimension]:
    """Yield dimensions of a part of a plan."""
    return ((path, changes) for changes in dimensions)


def changed(plan: Any, path: tuple[str, ...], change: Change) -> Any:
    """Return a plan with a change made to one of its parts."""
    if not path:
        return replace(plan, **change)
    part = path[0]
    return replace(plan, **{part: changed(getattr(plan, part), path[1:], change)})


def split(cpu: Cpu, is_free: bool) -> list[Change]:
    """Return the choice whether tasks are cut among the threads, where it is one."""
    is_free = is_free and cpu.cores > 1
    return [{"is_parallel": True}, {"is_parallel": False}] if is_free else []


def kind_fault(plan: Any, kind: type) -> str | None:
    """Return why a plan is not of a family."""
    if isinstance(plan, kind):
        return None
    return f"a {type(plan).__name__} is no plan for this family"


def range_fault(name: str, value: int, most: int) -> str | None:
    """Return why a number is out of range."""
    return None if 1 <= value <= most else f"{name} {value} is not in 1 to {most}"


def register_fault(needed: int, cpu: Cpu) -> str | None:
    """Return why a tile does not fit the register file."""
    if needed <= cpu.vector_registers:
        return None
    return f"the tile needs {needed} registers, there are {cpu.vector_registers}"


def frozen_fault(plan: Any, computed: Any, free: frozenset[str]) -> str | None:
    """Compare what no search may change: it is part of how kernels are written for a processor."""
    for field in fields(plan):
        found, expected = getattr(plan, field.name), getattr(computed, field.name)
        if field.name not in free and found != expected:
            return f"{field.name} is {found}, for this processor it is {expected}"
    return None
