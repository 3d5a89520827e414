"""Give fused kernels the names of the tensors that they compute.

TVM's `FuseOps` puts neighbouring calls into a function and names its result anew; without the ONNX
tensor's name a layer can no longer be compared with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow

__all__ = ["fuse_named"]


def fuse_named(mod: IRModule) -> IRModule:
    """Run `FuseOps` and name each call's result after the last of the bindings in it.

    Bindings that a function took in are found again by what they call and read: a group's calls
    are those of `main`, in their order.
    """
    before = Dataflow(mod)
    left: dict[Any, list[Any]] = {}
    for binding in before.bindings:
        left.setdefault(_key(binding.value, {}), []).append(binding.var)
    fused = relax.transform.FuseOps()(mod)
    after = Dataflow(fused)
    old_of: dict[Any, Any] = dict(zip(after.params, before.params, strict=True))
    for binding in after.bindings:
        group = _group(fused, binding.value)
        if group is None:
            old_of[binding.var] = _take(left, _key(binding.value, old_of))
            continue
        inside = dict(zip(group.params, binding.value.args, strict=True))
        known = {param: old_of.get(arg, arg) for param, arg in inside.items()}
        last = None
        for inner in _inner(group):
            if isinstance(inner.value, relax.Var):
                known[inner.var] = known.get(inner.value)
                continue
            last = _take(left, _key(inner.value, known))
            known[inner.var] = last
        old_of[binding.var] = last
    for binding in after.bindings:
        old = old_of.get(binding.var)
        if isinstance(old, relax.Var):
            after.names[binding.var] = old.name
    return after.rebuild()


def _group(mod: IRModule, value: Any) -> Any | None:
    """Return the function of Relax that a value calls, if it does."""
    if not isinstance(value, relax.Call) or not hasattr(value.op, "name_hint"):
        return None
    function = mod[value.op]
    return function if isinstance(function, relax.Function) else None


def _inner(function: Any) -> Iterator[Binding]:
    for block in function.body.blocks:
        for binding in block.bindings:
            yield Binding(binding.var, binding.value)


def _take(left: dict[Any, list[Any]], key: Any) -> Any | None:
    found = left.get(key)
    return found.pop(0) if found else None


def _key(value: Any, known: dict[Any, Any]) -> Any:
    """Return what tells a call from others: the kernel and the variables read; no constants."""
    if not isinstance(value, relax.Call):
        return (type(value).__name__, str(value))
    names: list[str] = []
    variables: list[Any] = []

    def visit(arg: Any) -> None:
        if hasattr(arg, "name_hint"):
            names.append(arg.name_hint)
        elif isinstance(arg, relax.Var):
            old = known.get(arg, arg)
            if isinstance(old, relax.Var):
                variables.append(old)
        elif isinstance(arg, relax.Tuple):
            for field in arg.fields:
                visit(field)

    for arg in value.args:
        visit(arg)
    operator = getattr(value.op, "name", None) or getattr(value.op, "name_hint", "")
    return (operator, tuple(names), tuple(variables))
