"""Calls of written kernels in place of a module's operators; equal kernels are written once.

Every selection of kernels works on this: what it decides is which operators a call takes over, and
how its kernel is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import IRModule, PrimFunc, relax
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow
from tvm_mobilenet.schedule.emit import holding

__all__ = ["KernelCalls"]

_OPAQUE = 8
"""TVM's pattern of a function that the fusion of what is left must not look into."""


class KernelCalls:
    """What is put in place of the operators of one module.

    Args:
        flow: the module's bindings.
        prefix: what every symbol begins with.
        holds_constants: whether a kernel holds its arrays itself, in place of arguments.
    """

    def __init__(self, flow: Dataflow, *, prefix: str = "", holds_constants: bool = False) -> None:
        self._flow = flow
        self._prefix = prefix
        self._holds_constants = holds_constants
        self._functions: dict[Any, PrimFunc] = {}
        self._new_values: dict[Any, Any] = {}
        self._taken: set[Any] = set()
        self._by_key: dict[Any, Any] = {}

    def has_taken(self, var: Any) -> bool:
        """Tell whether a call computes this variable, or has made it superfluous."""
        return var in self._taken

    def put(
        self,
        family: str,
        what: tuple[Any, ...],
        inputs: Sequence[Any],
        out: Any,
        members: Iterable[Any],
        write: Callable[[], PrimFunc],
    ) -> str | None:
        """Put a call of a kernel where `out` is computed.

        Args:
            family: the kernel's symbol begins with it.
            what: with family, shapes and dtypes, all that tells the kernel from others; hashable.
            inputs: arrays, which become constants or part of the kernel, and expressions.
            out: the variable that the call computes, a tensor or a tuple of tensors.
            members: the variables that it takes over, `out` among them.
            write: writes the kernel, where no equal one is there.

        Returns:
            The symbol of a kernel that was written, None where an equal one serves.
        """
        arrays = {i: arg for i, arg in enumerate(inputs) if isinstance(arg, np.ndarray)}
        held = arrays if self._holds_constants else {}
        args = [
            relax.const(np.ascontiguousarray(arg)) if index in arrays else arg
            for index, arg in enumerate(inputs)
            if index not in held
        ]
        out_types = list(out.ty.fields) if isinstance(out.ty, relax.TupleType) else [out.ty]
        types = [*(arg.ty for arg in args), *out_types]
        tensors = tuple((tuple(int(n) for n in ty.shape), str(ty.dtype)) for ty in types)
        contents = tuple(hashlib.sha256(array.tobytes()).digest() for array in held.values())
        key = (family, what, tensors, contents)
        symbol = None
        if key not in self._by_key:
            symbol = f"{self._prefix}{family}_{len(self._by_key)}"
            with holding(held):
                function = write()
            function = function.without_attr("global_symbol").with_attr("op_pattern", _OPAQUE)
            # The builder gives the global variable the function's type.
            global_var = relax.BlockBuilder().add_func(function, symbol)
            self._functions[global_var] = function
            self._by_key[key] = global_var
        self._new_values[out] = relax.call_tir(
            self._by_key[key], relax.Tuple(args), out_ty=out_types if len(out_types) > 1 else out.ty
        )
        self._taken.update(members)
        return symbol

    def module(self) -> IRModule:
        """Return the module with the calls in place of what they take over."""
        bindings = []
        for binding in self._flow.bindings:
            if binding.var in self._new_values:
                bindings.append(Binding(binding.var, self._new_values[binding.var]))
            elif binding.var not in self._taken:
                bindings.append(binding)
        return self._flow.rebuild(bindings, {}, self._functions)
