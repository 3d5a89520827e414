"""Choose a GPU kernel for each convolution, dense layer and global pool of a module in NHWC.

What follows one goes into its kernel as far as `tvm_mobilenet.schedule.chain` can follow it, and so
does the gate of squeeze-and-excite that scales its input. Weights are packed here, once, at compile
time.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.errors import CompileError
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.schedule.chain import Chain, ChainFollower
from tvm_mobilenet.schedule.mali.families import GpuPlan, compute_plan, pack, plan_fault, write
from tvm_mobilenet.schedule.mali.product import Accumulate
from tvm_mobilenet.schedule.select import KernelCall, PlanSource, Selection
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    TunableWorkload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = ["select_gpu_kernels"]

logger = logging.getLogger(__name__)

_DTYPES = ("float32", "float16")
_OPAQUE = 8


def select_gpu_kernels(
    mod: IRModule,
    gpu: Gpu,
    recorded: PlanSource | None = None,
    accumulate: Accumulate = "float32",
) -> Selection:
    """Replace each convolution, dense layer and global pool by a call of a kernel written for it.

    Rewrite:
        minimum(maximum(add(conv2d(x, w), bias), low), high)
            ->  call_tir(kernel, (x, packed, bias))
    Shapes:
        x (N, H, W, C), w (O, kH, kW, I/g), result (N, H, W, O), of f32 or f16.

    Where `recorded` has no plan, one is computed; what is left goes to the fallback, and is logged.

    Raises:
        CompileError: a recorded or computed plan is beyond the device's limits.
    """
    selector = _Selector(mod, gpu, recorded, accumulate)
    for binding in selector.flow.bindings:
        selector.visit(binding)
    new = selector.flow.rebuild(selector.bindings(), {}, selector.functions)
    return Selection(new, selector.kernels)


class _Selector:
    def __init__(
        self, mod: IRModule, gpu: Gpu, recorded: PlanSource | None, accumulate: Accumulate
    ) -> None:
        self.flow = Dataflow(mod)
        self._gpu = gpu
        self._accumulate = accumulate
        self._recorded = recorded or (lambda _family, _workload: None)
        self._users = self.flow.users()
        self._chains = ChainFollower(self._users)
        self._definitions = self.flow.definitions()
        self.functions: dict[Any, Any] = {}
        self.kernels: dict[str, KernelCall] = {}
        self._new_values: dict[Any, Any] = {}
        self._taken: set[Any] = set()
        self._by_key: dict[Any, Any] = {}

    def bindings(self) -> list[Binding]:
        """Return the bindings with the chosen calls in place of what they take over."""
        result = []
        for binding in self.flow.bindings:
            if binding.var in self._new_values:
                result.append(Binding(binding.var, self._new_values[binding.var]))
            elif binding.var not in self._taken:
                result.append(binding)
        return result

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one binding if it is an anchor."""
        if binding.var in self._taken:
            return
        if is_call(binding.value, "nn.conv2d"):
            self._convolution(binding)
        elif is_call(binding.value, "matmul"):
            self._dense(binding)
        elif is_call(binding.value, "mean"):
            self._pool(binding)

    # -- anchors ----------------------------------------------------------------------------

    def _convolution(self, binding: Binding) -> None:
        call = binding.value
        weight = constant_array(call.args[1])
        reason = _unserved_convolution(call, weight)
        if weight is None or reason is not None:
            logger.info("%s: no kernel family: %s", binding.var.name, reason)
            return
        chain = self._chains.follow(binding.var)
        weight = weight.astype("float32") * np.float32(chain.factor)
        x, layout = self._input(call.args[0])
        shape = static_shape(call.args[0])
        attrs = call.attrs
        workload = ConvWorkload(
            batch=shape[0],
            height=shape[1],
            width=shape[2],
            in_channels=shape[3],
            out_channels=weight.shape[0],
            kernel=(weight.shape[1], weight.shape[2]),
            stride=_pair(attrs.strides),
            dilation=_pair(attrs.dilation),
            padding=tuple(int(p) for p in attrs.padding),  # type: ignore[arg-type]
            groups=int(attrs.groups),
            input_layout=layout,
            epilogue=chain.epilogue,
            dtype=str(binding.var.ty.dtype),
        )
        if workload.is_depthwise:
            workload = replace(workload, input_layout="NHWC")
            self._place(chain, "depthwise", workload, [call.args[0]], weight.transpose(0, 3, 1, 2))
        elif workload.is_pointwise:
            product = MatmulWorkload(
                rows=workload.batch * workload.height * workload.width,
                depth=workload.in_channels,
                columns=workload.out_channels,
                epilogue=chain.epilogue,
                dtype=workload.dtype,
            )
            matrix = weight.reshape(weight.shape[0], -1).T
            gated = self._gate_of(call.args[0])
            if gated is not None:
                scaled = GatedWorkload(batch=workload.batch, pointwise=product)
                self._place(chain, "gated", scaled, list(gated), matrix)
            else:
                self._place(chain, "pointwise", product, [x], matrix)
        else:
            self._place(chain, "conv", workload, [x], weight.transpose(0, 3, 1, 2))

    def _gate_of(self, x: Any) -> tuple[Any, Any] | None:
        """Return image and gate of squeeze-and-excite that only this input is computed from."""
        call = self._definitions.get(x)
        if not is_call(call, "multiply") or len(self._users[x]) != 1:
            return None
        shape = static_shape(x)
        gate_shape = (shape[0], 1, 1, shape[3])
        for image, gate in (tuple(call.args), tuple(reversed(call.args))):
            if static_shape(image) == shape and static_shape(gate) == gate_shape != shape:
                return image, gate
        return None

    def _dense(self, binding: Binding) -> None:
        weight = constant_array(binding.value.args[1])
        shape = static_shape(binding.value.args[0])
        if weight is None or weight.ndim != 2 or str(weight.dtype) not in _DTYPES or len(shape) < 2:
            logger.info("%s: no kernel family: matmul of two tensors", binding.var.name)
            return
        chain = self._chains.follow(binding.var)
        workload = MatmulWorkload(
            rows=int(np.prod(shape[:-1])),
            depth=shape[-1],
            columns=weight.shape[1],
            epilogue=chain.epilogue,
            dtype=str(binding.var.ty.dtype),
        )
        weight = weight.astype("float32") * np.float32(chain.factor)
        self._place(chain, "dense", workload, [binding.value.args[0]], weight)

    def _pool(self, binding: Binding) -> None:
        call = binding.value
        shape = static_shape(call.args[0])
        axes = sorted(int(axis) % len(shape) for axis in call.attrs.axis or range(len(shape)))
        if len(shape) != 4 or axes != [1, 2] or str(binding.var.ty.dtype) not in _DTYPES:
            logger.info("%s: no kernel family: mean over axes %s", binding.var.name, axes)
            return
        workload = PoolWorkload(
            batch=shape[0],
            pixels=shape[1] * shape[2],
            channels=shape[3],
            dtype=str(binding.var.ty.dtype),
        )
        chain = Chain(binding.var, [binding.var], Epilogue())
        self._place(chain, "pool", workload, [call.args[0]], None)

    # -- what goes into a kernel ------------------------------------------------------------

    def _input(self, x: Any) -> tuple[Any, Literal["NHWC", "NCHW"]]:
        """Read through a transpose from NCHW, which the dense convolution does for nothing."""
        value = self._definitions.get(x)
        if is_call(value, "permute_dims"):
            axes = list(map(int, value.attrs.axes or []))
            if axes == [0, 2, 3, 1]:
                return value.args[0], "NCHW"
        return x, "NHWC"

    def _plan(self, family: str, workload: TunableWorkload) -> tuple[GpuPlan, bool]:
        plan = self._recorded(family, workload)
        is_tuned = plan is not None
        if plan is None:
            plan = compute_plan(workload, self._gpu, self._accumulate)
        fault = plan_fault(workload, plan, self._gpu)
        if fault is not None:
            raise CompileError(f"no kernel for {family} {workload}: {fault}")
        return plan, is_tuned

    def _place(
        self,
        chain: Chain,
        family: str,
        workload: TunableWorkload,
        inputs: list[Any],
        weight: np.ndarray | None,
    ) -> None:
        """Put a call of the kernel where the last member of the chain was."""
        plan, is_tuned = self._plan(family, workload)
        out = chain.last
        args = list(inputs)
        if weight is not None:
            args.append(_constant(pack(weight, plan), workload.dtype))
        if chain.bias is not None:
            args.append(_constant(chain.bias, getattr(plan, "accumulate", "float32")))
        if chain.residual is not None:
            args.append(chain.residual)
        shapes = tuple(static_shape(tensor) for tensor in (*args, out))
        key = (family, workload, plan, shapes)
        if key not in self._by_key:
            self._by_key[key] = self._kernel(family, workload, plan, shapes, is_tuned=is_tuned)
        call = relax.call_tir(self._by_key[key], relax.Tuple(args), out_ty=out.ty)
        self._new_values[out] = call
        self._taken.update(chain.members)

    def _kernel(
        self,
        family: str,
        workload: TunableWorkload,
        plan: GpuPlan,
        shapes: tuple[tuple[int, ...], ...],
        *,
        is_tuned: bool,
    ) -> Any:
        symbol = f"{family}_{len(self.kernels)}"
        function = write(
            workload,
            plan,
            x_shape=shapes[0],
            gate_shape=shapes[1] if isinstance(workload, GatedWorkload) else None,
            y_shape=shapes[-1],
        )
        # Opaque: the fusion of what is left must not look into it.
        function = function.without_attr("global_symbol").with_attr("op_pattern", _OPAQUE)
        # The builder gives the global variable the function's type.
        global_var = relax.BlockBuilder().add_func(function, symbol)
        self.functions[global_var] = function
        origin: Literal["tuned", "computed"] = "tuned" if is_tuned else "computed"
        self.kernels[symbol] = KernelCall(symbol, family, workload, plan, origin)
        return global_var


def _constant(array: np.ndarray, dtype: str) -> Any:
    return relax.const(np.ascontiguousarray(array.astype(dtype)))


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _unserved_convolution(call: Any, weight: np.ndarray | None) -> str | None:
    """Return why no kernel family serves a convolution, or None."""
    attrs = call.attrs
    if weight is None:
        return "its weights are not constant"
    if str(weight.dtype) not in _DTYPES:
        return f"its weights are {weight.dtype}"
    if str(attrs.data_layout) != "NHWC" or str(attrs.kernel_layout) != "OHWI":
        return f"its layout is {attrs.data_layout}"
    groups, channels = int(attrs.groups), static_shape(call.args[0])[3]
    if groups != 1 and not groups == channels == weight.shape[0]:
        return f"{groups} groups of {channels} channels"
    return None
