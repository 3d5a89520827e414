"""What stays in float32 in a quantized model, and why."""

from __future__ import annotations

import json
from typing import Any

from tvm_mobilenet._tvm import IRModule, Op, relax
from tvm_mobilenet.frontend.dataflow import Binding
from tvm_mobilenet.records import FloatIsland

__all__ = ["Islands", "float_islands", "is_integer", "with_islands"]

_ATTRIBUTE = "tvm_mobilenet.float_islands"


class Islands:
    """Float operators of a module, joined where one reads another's result."""

    def __init__(self) -> None:
        self._of: dict[Any, list[tuple[Binding, str]]] = {}
        """By variable, the island that it lies on."""
        self._quantized: set[Any] = set()

    def note(self, binding: Binding, reason: str) -> None:
        """Add one float operator; without a reason it is only passed through."""
        if not isinstance(binding.value, relax.Call) or not isinstance(binding.value.op, Op):
            return
        island: list[tuple[Binding, str]] = []
        for arg in binding.value.args:
            other = self._of.get(arg) if isinstance(arg, relax.Var) else None
            if other is not None and other is not island:
                island = other + island
        island.append((binding, reason))
        for member, _ in island:
            self._of[member.var] = island

    def quantized(self, var: Any) -> None:
        """Note that a float result is quantized again."""
        self._quantized.add(var)

    def records(self) -> list[FloatIsland]:
        """Describe the islands, in order."""
        records = []
        seen: list[int] = []
        for island in self._of.values():
            named = [(binding, reason) for binding, reason in island if reason]
            if id(island) in seen or not named:
                continue
            seen.append(id(island))
            operators = [binding.value.op.name.removeprefix("relax.") for binding, _ in named]
            last = island[-1][0].var
            records.append(
                FloatIsland(
                    tensor=last.name,
                    operators=tuple(operators),
                    reason="; ".join(dict.fromkeys(reason for _, reason in named)),
                    is_quantized_again=last in self._quantized,
                )
            )
        return records


def with_islands(mod: IRModule, islands: Islands) -> IRModule:
    """Return the module with its float islands on record."""
    records = [record.model_dump(mode="json") for record in islands.records()]
    return mod.with_attr(_ATTRIBUTE, json.dumps(records))


def float_islands(mod: IRModule) -> tuple[FloatIsland, ...]:
    """Return what `integerize` left in float32, in order."""
    text = dict(mod.attrs or {}).get(_ATTRIBUTE)
    if text is None:
        return ()
    return tuple(FloatIsland.model_validate(record) for record in json.loads(str(text)))


def is_integer(mod: IRModule) -> bool:
    """Tell whether a module was a quantized one."""
    return _ATTRIBUTE in dict(mod.attrs or {})
