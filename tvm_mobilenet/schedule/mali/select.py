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

from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.errors import CompileError
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.frontend.detections import read_detections
from tvm_mobilenet.schedule.anchors import (
    conv_workload,
    gate_of,
    pointwise_product,
    read_input,
    reduced_axes,
    unserved_convolution,
)
from tvm_mobilenet.schedule.chain import Chain, ChainFollower
from tvm_mobilenet.schedule.kernel_calls import KernelCalls
from tvm_mobilenet.schedule.mali.families import GpuPlan, compute_plan, pack, plan_fault, write
from tvm_mobilenet.schedule.mali.product import Accumulate
from tvm_mobilenet.schedule.select import KernelCall, PlanSource, Selection
from tvm_mobilenet.schedule.workload import (
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
    return Selection(selector.calls.module(), selector.kernels)


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
        self.calls = KernelCalls(self.flow)
        self.kernels: dict[str, KernelCall] = {}

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one binding if it is an anchor."""
        if self.calls.has_taken(binding.var):
            return
        if is_call(binding.value, "nn.conv2d"):
            self._convolution(binding)
        elif is_call(binding.value, "matmul"):
            self._dense(binding)
        elif is_call(binding.value, "mean"):
            self._pool(binding)
        elif read_detections(binding.value) is not None:
            raise CompileError(
                "a detector's suppression has no GPU kernel; compile it for the board's processor"
            )

    # -- anchors ----------------------------------------------------------------------------

    def _convolution(self, binding: Binding) -> None:
        call = binding.value
        weight = constant_array(call.args[1])
        reason = unserved_convolution(call, weight, _DTYPES)
        if weight is None or reason is not None:
            logger.info("%s: no kernel family: %s", binding.var.name, reason)
            return
        chain = self._chains.follow(binding.var)
        weight = weight.astype("float32") * np.float32(chain.factor)
        x, layout = read_input(call.args[0], self._definitions)
        workload = conv_workload(binding, weight, layout, chain.epilogue)
        if workload.is_depthwise:
            workload = replace(workload, input_layout="NHWC")
            self._place(chain, "depthwise", workload, [call.args[0]], weight.transpose(0, 3, 1, 2))
        elif workload.is_pointwise:
            product = pointwise_product(workload)
            matrix = weight.reshape(weight.shape[0], -1).T
            gated = gate_of(call.args[0], self._definitions, self._users)
            if gated is not None:
                scaled = GatedWorkload(batch=workload.batch, pointwise=product)
                self._place(chain, "gated", scaled, list(gated), matrix)
            else:
                self._place(chain, "pointwise", product, [x], matrix)
        else:
            self._place(chain, "conv", workload, [x], weight.transpose(0, 3, 1, 2))

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
        axes = reduced_axes(call)
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
        args = list(inputs)
        if weight is not None:
            args.append(pack(weight, plan).astype(workload.dtype))
        if chain.bias is not None:
            args.append(chain.bias.astype(getattr(plan, "accumulate", "float32")))
        if chain.residual is not None:
            args.append(chain.residual)
        symbol = self.calls.put(
            family,
            (workload, plan),
            args,
            chain.last,
            chain.members,
            lambda: write(
                workload,
                plan,
                x_shape=static_shape(inputs[0]),
                gate_shape=static_shape(inputs[1]) if isinstance(workload, GatedWorkload) else None,
                y_shape=static_shape(chain.last),
            ),
        )
        if symbol is not None:
            origin: Literal["tuned", "computed"] = "tuned" if is_tuned else "computed"
            self.kernels[symbol] = KernelCall(symbol, family, workload, plan, origin)
