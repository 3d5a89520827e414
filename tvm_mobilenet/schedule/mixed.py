"""Mixed execution: a processor computes what its target leaves to it, the GPU beside it the rest.

What runs where is a choice in the target's file (`gpu.on_cpu`). Kernels for the processor hold
their weights themselves, since the virtual machine brings every constant to its first device, the
GPU; a tensor that the other side reads is copied, or mapped where they share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvm_mobilenet._tvm import IRModule, PrimFunc, is_tensor_type, relax, tvm
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["CPU_PREFIX", "named_fallbacks", "own_memory_on_cpu", "place_on_devices"]

CPU_PREFIX = "cpu_"
"""Begins the symbol of every kernel that was written for the processor."""
_GPU_INDEX, _CPU_INDEX = 0, 1
"""Of the virtual machine's devices: it is given the GPU, and adds the processor by itself."""


def named_fallbacks(mod: IRModule, own: set[str], operators: Sequence[str]) -> set[str]:
    """Return the TIR functions not in `own` that compute one of the operators.

    TVM names a function after what it computes: `softmax`, `fused_reshape_add`.
    """
    return {
        global_var.name_hint
        for global_var, function in mod.functions_items()
        if isinstance(function, PrimFunc)
        and global_var.name_hint not in own
        and any(operator in global_var.name_hint for operator in operators)
    }


def place_on_devices(mod: IRModule, on_cpu: set[str], target: TargetSpec) -> IRModule:
    """Have the kernels `on_cpu` run on the processor, and copy what crosses to the other side.

    Rewrite:
        y = call_tir(on_gpu, (x,)); z = call_tir(on_cpu, (y,))
            ->  y = call_tir(on_gpu, (x,)); y_on_cpu = to_vdevice(y, cpu)
                z = call_tir(on_cpu, (y_on_cpu,)), which lies on the processor
    """
    if not on_cpu:
        return mod
    host = tvm.target.Target(target.host_target(), target.host_target())
    sides = {
        _GPU_INDEX: relax.VDevice(target.tvm_target(), 0, "global"),
        _CPU_INDEX: relax.VDevice(host, 0, "global"),
    }
    placed = IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    placed.update_global_info("vdevice", list(sides.values()))
    for global_var, function in mod.functions_items():
        if global_var.name_hint in on_cpu:
            placed.update_func(global_var, function.with_attr("target", host))
    return _Placer(placed, on_cpu, sides).place()


class _Placer:
    def __init__(self, mod: IRModule, on_cpu: set[str], sides: dict[int, Any]) -> None:
        self._flow = Dataflow(mod)
        self._on_cpu = on_cpu
        self._sides = sides
        self._where: dict[Any, int] = {}
        self._copies: dict[tuple[Any, int], Any] = {}
        self._bindings: list[Binding] = []

    def place(self) -> IRModule:
        for binding in self._flow.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                self._call(binding)
            else:  # a view of a tensor lies where that one does
                side = next((self._where[v] for v in _read(value) if v in self._where), _GPU_INDEX)
                self._where[binding.var] = side
                self._bindings.append(binding)
        return self._flow.rebuild(self._bindings)

    def _call(self, binding: Binding) -> None:
        kernel, arguments = binding.value.args[0], binding.value.args[1].fields
        side = _CPU_INDEX if kernel.name_hint in self._on_cpu else _GPU_INDEX
        moved = [self._moved(argument, side) for argument in arguments]
        out_ty = _on(binding.value.ty, self._sides[side]) if side == _CPU_INDEX else binding.var.ty
        self._where[binding.var] = side
        call = relax.call_tir(kernel, relax.Tuple(moved), out_ty=out_ty)
        self._bindings.append(Binding(binding.var, call))

    def _moved(self, tensor: Any, side: int) -> Any:
        if self._where.get(tensor, _GPU_INDEX) == side:
            return tensor
        if (tensor, side) not in self._copies:
            suffix = "_on_cpu" if side == _CPU_INDEX else "_on_gpu"
            copy = relax.Var(
                f"{getattr(tensor, 'name', 'constant')}{suffix}",
                _on(tensor.ty, self._sides[side]),
            )
            self._bindings.append(Binding(copy, relax.op.to_vdevice(tensor, self._sides[side])))
            self._copies[tensor, side] = copy
            self._where[copy] = side
        return self._copies[tensor, side]


def _read(value: Any) -> list[Any]:
    return list(value.args) if isinstance(value, relax.Call) else [value]


def _on(ty: Any, side: Any) -> Any:
    if not is_tensor_type(ty):
        raise AssertionError(f"a kernel on the processor writes {ty}, which is not one tensor")
    return relax.TensorType(ty.shape, ty.dtype, side)


def own_memory_on_cpu() -> Any:
    """Return the pass that keeps tensors on the processor out of the plan of the GPU's memory.

    TVM's plan takes tensors whose lives do not overlap for the same memory whatever device they are
    on (it asks for scope and dtype alone).
    """

    @relax.expr_functor.mutator
    class OwnMemory(relax.PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.builtin.alloc_tensor":
                return call
            shape, dtype, index, scope = call.args
            if int(index) != _CPU_INDEX:
                return call
            size = tvm.runtime.DataType(str(dtype.value)).itemsize
            for extent in shape.values:
                size *= int(extent)
            memory = relax.op.memory
            storage = self.builder_.emit(
                memory.alloc_storage(relax.ShapeExpr([size]), index, scope.value, "uint8")
            )
            return memory.alloc_tensor(storage, 0, shape, str(dtype.value))

    def rewrite(mod: IRModule, _context: Any) -> IRModule:
        if len(mod.global_infos.get("vdevice", ())) <= _CPU_INDEX:
            return mod
        mutator = OwnMemory(mod)
        for global_var, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mutator.builder_.update_func(global_var, mutator.visit_expr(function))
        result = mutator.builder_.get()
        result.update_global_info("vdevice", mod.global_infos["vdevice"])
        return result

    return tvm.transform.module_pass(rewrite, opt_level=0)
