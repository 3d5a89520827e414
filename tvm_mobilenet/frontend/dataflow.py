"""A Relax `main` as an editable list of bindings, the form that every rewrite here works on.

The list is in order of execution. Variables keep their names through every rewrite, because a name
is the name of the ONNX tensor that the variable holds: per-layer comparison depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from tvm_mobilenet._tvm import GenericConst, IRModule, Op, relax
from tvm_mobilenet.errors import PreconditionError

__all__ = [
    "Binding",
    "Dataflow",
    "constant_array",
    "is_call",
    "static_shape",
    "substitute",
]


@dataclass
class Binding:
    """`var = value`; `var` still has the type that the value had when the module was read."""

    var: Any
    value: Any


class Dataflow:
    """The bindings of `main`, which must be one straight-line block."""

    def __init__(self, mod: IRModule) -> None:
        function = mod["main"]
        blocks = list(function.body.blocks)
        if len(blocks) > 1:
            raise PreconditionError(
                f"the module's main has {len(blocks)} blocks, one is handled: "
                "models with control flow cannot be compiled"
            )
        self._mod = mod
        self._function = function
        self.params = list(function.params)
        self.bindings: list[Binding] = []
        for block in blocks:
            for binding in block.bindings:
                self.bindings.append(Binding(binding.var, binding.value))
        self.result = function.body.body
        self.names: dict[Any, str] = {}
        """New names of variables, parameters included, applied when the module is rebuilt."""
        self._inline_output_alias()

    def _inline_output_alias(self) -> None:
        """Drop `gv = (a, b)` or `gv = a` at the end: the result is rebuilt when written back."""
        while self.bindings and isinstance(self.result, relax.Var):
            last = self.bindings[-1]
            if not last.var.same_as(self.result):
                return
            if not isinstance(last.value, relax.Tuple | relax.Var):
                return
            self.result = last.value
            self.bindings.pop()

    def outputs(self) -> list[Any]:
        """Return the expressions that the module returns, in order."""
        if isinstance(self.result, relax.Tuple):
            return list(self.result.fields)
        return [self.result]

    def definition(self, expr: Any) -> Any | None:
        """Return the value bound to a variable, or None for parameters and anything else."""
        for binding in self.bindings:
            if binding.var.same_as(expr):
                return binding.value
        return None

    def definitions(self) -> dict[Any, Any]:
        """Return the value bound to each variable."""
        return {binding.var: binding.value for binding in self.bindings}

    def users(self) -> dict[Any, list[Binding]]:
        """Return, for each variable, the bindings that read it; an output counts as a reader."""
        users: dict[Any, list[Binding]] = {}
        for binding in self.bindings:
            for var in _variables(binding.value):
                users.setdefault(var, []).append(binding)
        for output in self.outputs():
            users.setdefault(output, []).append(Binding(None, output))
        return users

    def rebuild(
        self,
        bindings: Sequence[Binding] | None = None,
        replaced: Mapping[Any, Any] | None = None,
        functions: Mapping[Any, Any] | None = None,
    ) -> IRModule:
        """Return the module with `bindings` in place of its own.

        Args:
            bindings: the new list; values may mention old variables.
            replaced: variables that no longer exist, and what stands in their place.
            functions: functions to add to the module, by global variable; values may call them.

        Bindings that nothing reads are left out.
        """
        kept = _live(
            list(self.bindings if bindings is None else bindings), self.outputs(), replaced or {}
        )
        builder = relax.BlockBuilder()
        mapping: dict[Any, Any] = dict(replaced or {})
        params = []
        for param in self.params:
            renamed = relax.Var(self.names.get(param, param.name), param.ty)
            mapping[param] = renamed
            params.append(renamed)
        attrs = dict(self._function.attrs) if self._function.attrs else {}
        with builder.function("main", params, attrs=attrs):
            with builder.dataflow():
                for binding in kept:
                    value = builder.normalize(substitute(binding.value, mapping))
                    if isinstance(value, relax.Var | GenericConst):
                        mapping[binding.var] = value
                        continue
                    name = self.names.get(binding.var, binding.var.name)
                    var = relax.DataflowVar(name, value.ty)
                    builder.emit_normalized(relax.VarBinding(var, value))
                    mapping[binding.var] = var
                result = substitute(self.result, mapping)
                output = builder.emit_output(result)
            builder.emit_func_output(output)
        mod = IRModule(
            dict(self._mod.functions_items()),
            attrs=self._mod.attrs,
            global_infos=self._mod.global_infos,
        )
        for global_var, function in (functions or {}).items():
            mod[global_var] = function
        mod.update_func(self._mod.get_global_var("main"), builder.get()["main"])
        return mod


def _live(
    bindings: list[Binding], outputs: Sequence[Any], replaced: Mapping[Any, Any]
) -> list[Binding]:
    wanted: set[Any] = set()
    for output in outputs:
        wanted.update(_variables(_resolve(output, replaced)))
    kept = []
    for binding in reversed(bindings):
        if binding.var in wanted:
            kept.append(binding)
            for var in _variables(binding.value):
                wanted.update(_variables(_resolve(var, replaced)))
    kept.reverse()
    return kept


def _resolve(expr: Any, mapping: Mapping[Any, Any]) -> Any:
    while isinstance(expr, relax.Var) and expr in mapping:
        expr = mapping[expr]
    return expr


def _variables(expr: Any) -> list[Any]:
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return [var for arg in expr.args for var in _variables(arg)]
    if isinstance(expr, relax.Tuple):
        return [var for field in expr.fields for var in _variables(field)]
    if isinstance(expr, relax.TupleGetItem):
        return _variables(expr.tuple_value)
    return []


def substitute(expr: Any, mapping: Mapping[Any, Any]) -> Any:
    """Return `expr` with variables replaced, chains of replacements followed to their end."""
    if isinstance(expr, relax.Var):
        target = _resolve(expr, mapping)
        return expr if target is expr else substitute(target, mapping)
    if isinstance(expr, relax.Call):
        args = [substitute(arg, mapping) for arg in expr.args]
        if all(new.same_as(old) for new, old in zip(args, expr.args, strict=True)):
            return expr
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, mapping) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, mapping), expr.index)
    return expr


def is_call(expr: Any, *names: str) -> TypeGuard[Any]:
    """Tell whether `expr` calls one of the Relax operators `names` (without `relax.`)."""
    return (
        isinstance(expr, relax.Call)
        and isinstance(expr.op, Op)
        and expr.op.name.removeprefix("relax.") in names
    )


def constant_array(expr: Any) -> np.ndarray | None:
    """Return the value of a constant, or None."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def static_shape(expr: Any) -> tuple[int, ...]:
    """Return the shape of a tensor expression.

    Raises:
        PreconditionError: some extent is not known at compile time.
    """
    try:
        return tuple(int(extent) for extent in expr.ty.shape)
    except (TypeError, ValueError, AttributeError) as err:
        raise PreconditionError(
            f"the shape of {expr} is not known at compile time; export the model with fixed shapes"
        ) from err
