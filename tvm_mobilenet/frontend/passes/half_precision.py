"""Store a float32 model in 16 bits: float16, or bfloat16."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

from tvm_mobilenet._tvm import GenericConst, IRModule, is_tensor_type, relax
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow, constant_array, is_call, static_shape

__all__ = ["HALF_DTYPES", "Half", "store_in_half"]

Half = Literal["float16", "bfloat16"]
HALF_DTYPES: tuple[Half, ...] = ("float16", "bfloat16")

_IN_HALF = (
    "nn.conv2d",
    "matmul",
    "add",
    "subtract",
    "multiply",
    "maximum",
    "minimum",
    "nn.pad",
    "nn.max_pool2d",
    "concat",
    "reshape",
    "permute_dims",
    "squeeze",
    "expand_dims",
    "flatten",
    "strided_slice",
)
"""Operators that have 16-bit numbers in and out. A mean over the pixels is one more: its kernel
sums in float32. All others compute in float32: exponentials overflow at 11 in float16, and long
sums of TVM's own kernels lose their last terms."""


def store_in_half(mod: IRModule, dtype: Half) -> IRModule:
    """Have weights and what lies between layers in 16 bits; the interface stays float32.

    Rewrite:
        y = conv2d(x, w)  ->  y = conv2d(astype(x, dtype), w as dtype)
        softmax(y)        ->  softmax(astype(y, float32))
    Shapes:
        any; parameters and results of the module keep their dtype.

    In which type a kernel sums is not said here: the kernels of the target decide.

    Raises:
        UsageError: a weight is beyond the largest number of `dtype`.
    """
    flow = Dataflow(mod)
    walk = _Walk(dtype)
    for binding in flow.bindings:
        walk.visit(binding)
    for output in flow.outputs():
        walk.restore(output)
    return flow.rebuild(walk.bindings, walk.replaced)


class _Walk:
    """One walk over a module, in order."""

    def __init__(self, dtype: Half) -> None:
        self.bindings: list[Binding] = []
        self.replaced: dict[Any, Any] = {}
        self._dtype = dtype
        self._half: dict[Any, Any] = {}
        """By the float32 variable, its 16-bit one."""
        self._computed_in_half: set[Any] = set()

    def visit(self, binding: Binding) -> None:
        """Rewrite one binding, behind the casts that it needs."""
        value = binding.value
        if not isinstance(value, relax.Call) or not self._is_in_half(binding):
            for var in _tensors(value):
                self.restore(var)
            self.bindings.append(binding)
            return
        args = [self._in_half(arg) for arg in value.args]
        new = relax.Call(value.op, args, value.attrs, value.ty_args)
        var = relax.DataflowVar(binding.var.name, relax.BlockBuilder().normalize(new).ty)
        self.bindings.append(Binding(var, new))
        self._half[binding.var] = var
        self._computed_in_half.add(binding.var)

    def restore(self, var: Any) -> None:
        """Have the float32 form of what was computed in 16 bits; once, where it is first read."""
        if var not in self._computed_in_half or var in self.replaced:
            return
        cast = relax.op.astype(self._half[var], "float32")
        wide = relax.DataflowVar(f"{var.name}_float32", var.ty)
        self.bindings.append(Binding(wide, cast))
        self.replaced[var] = wide

    def _is_in_half(self, binding: Binding) -> bool:
        call = binding.value
        if not _is_float32(binding.var) or not all(map(_is_float32, _tensors(call))):
            return False
        if is_call(call, "mean"):
            axes = sorted(int(axis) % 4 for axis in call.attrs.axis or ())
            return len(static_shape(call.args[0])) == 4 and axes == [1, 2]
        return is_call(call, *_IN_HALF)

    def _in_half(self, expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._in_half(field) for field in expr.fields])
        array = constant_array(expr)
        if array is not None:
            return relax.const(self._rounded(array)) if array.dtype == np.float32 else expr
        if not isinstance(expr, relax.Var) or not _is_float32(expr):
            return expr
        if expr not in self._half:
            cast = relax.op.astype(expr, self._dtype)
            ty = relax.BlockBuilder().normalize(cast).ty
            self._half[expr] = var = relax.DataflowVar(f"{expr.name}_{self._dtype}", ty)
            self.bindings.append(Binding(var, cast))
        return self._half[expr]

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        largest = float(ml_dtypes.finfo(self._dtype).max)
        magnitude = float(np.abs(array[np.isfinite(array)]).max(initial=0))
        if magnitude > largest:
            instead = "; compile with --dtype bfloat16" if self._dtype == "float16" else ""
            raise UsageError(
                f"dtype {self._dtype}: a constant of the model is {magnitude:.3g}, the largest "
                f"number is {largest:.3g}{instead or '; leave the model in float32'}"
            )
        return array.astype(ml_dtypes.bfloat16 if self._dtype == "bfloat16" else np.float16)


def _tensors(value: Any) -> list[Any]:
    """Return the tensors that an expression reads, those inside of tuples among them."""
    if isinstance(value, relax.Var | GenericConst):
        return [value] if is_tensor_type(value.ty) else []
    if isinstance(value, relax.Tuple):
        return [tensor for field in value.fields for tensor in _tensors(field)]
    if isinstance(value, relax.TupleGetItem):
        return _tensors(value.tuple_value)
    if isinstance(value, relax.Call):
        return [tensor for arg in value.args for tensor in _tensors(arg)]
    return []


def _is_float32(expr: Any) -> bool:
    return is_tensor_type(expr.ty) and str(expr.ty.dtype) == "float32"
