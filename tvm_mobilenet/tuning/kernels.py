"""One workload and one plan as a module of its own: what is built, and what it is called with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm_mobilenet._tvm import IRModule, PrimFunc
from tvm_mobilenet.schedule.cascade import CascadePlan, pack_cascade, write_cascade
from tvm_mobilenet.schedule.convolution import ConvPlan, pack_conv, write_conv
from tvm_mobilenet.schedule.depthwise import DepthwisePlan, pack_depthwise, write_depthwise
from tvm_mobilenet.schedule.gated import GatedPlan, write_gated
from tvm_mobilenet.schedule.integer.workload import IntegerWorkload
from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.schedule.mali.families import GpuPlan
from tvm_mobilenet.schedule.matmul import MatmulPlan, pack_matmul, write_matmul
from tvm_mobilenet.schedule.pool import PoolPlan, write_pool
from tvm_mobilenet.schedule.separable import ApartPlan, SeparablePlan, write_separable
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.integer_kernels import IntegerPlan, packed_inputs, write_integer
from tvm_mobilenet.tuning.operands import Array, Operands
from tvm_mobilenet.tuning.records import Plan
from tvm_mobilenet.tuning.reference import output_dtype, output_shape

__all__ = ["Call", "calls", "kernel_module"]


@dataclass(frozen=True)
class Call:
    """One kernel call: its symbol, what it reads, and the shape of what it writes."""

    symbol: str
    inputs: tuple[Array | None, ...]
    """None stands for what the call before it wrote."""
    weights: frozenset[int]
    """Positions in `inputs` of what a model holds as constants."""
    shape: tuple[int, ...]
    dtype: str = "float32"
    """Of what it writes."""


def kernel_module(workload: TunableWorkload, plan: Plan) -> IRModule:
    """Write the kernels of a plan: one, or two where a pair is computed apart."""
    return IRModule(
        {
            symbol: function.with_attr("global_symbol", symbol)
            for symbol, function in _functions(workload, plan).items()
        }
    )


def _functions(workload: TunableWorkload, plan: Plan) -> dict[str, PrimFunc]:
    if isinstance(plan, GpuPlan):
        return {"first": families.write(workload, plan)}
    if isinstance(workload, IntegerWorkload):
        assert isinstance(plan, IntegerPlan)
        return {"first": write_integer(workload, plan)}
    if isinstance(workload, SeparableWorkload):
        shape = output_shape(workload)
        if isinstance(plan, ApartPlan):
            between = output_shape(workload.depthwise)
            return {
                "first": write_depthwise(workload.depthwise, plan.depthwise),
                "second": write_matmul(
                    workload.pointwise, plan.pointwise, x_shape=between, y_shape=shape
                ),
            }
        assert isinstance(plan, SeparablePlan)
        return {"first": write_separable(workload, plan, y_shape=shape)}
    if isinstance(workload, CascadeWorkload):
        assert isinstance(plan, CascadePlan)
        return {"first": write_cascade(workload, plan)}
    if isinstance(workload, MatmulWorkload):
        assert isinstance(plan, MatmulPlan)
        return {"first": write_matmul(workload, plan)}
    if isinstance(workload, PoolWorkload):
        assert isinstance(plan, PoolPlan)
        x_shape = (workload.batch, workload.pixels, workload.channels)
        return {
            "first": write_pool(workload, plan, x_shape=x_shape, y_shape=output_shape(workload))
        }
    if isinstance(workload, GatedWorkload):
        assert isinstance(plan, GatedPlan)
        rows, depth = workload.pointwise.rows, workload.pointwise.depth
        return {
            "first": write_gated(
                workload,
                plan,
                x_shape=(rows, depth),
                gate_shape=(workload.batch, depth),
                y_shape=output_shape(workload),
            )
        }
    if isinstance(plan, DepthwisePlan):
        return {"first": write_depthwise(workload, plan)}
    assert isinstance(plan, ConvPlan)
    return {"first": write_conv(workload, plan)}


def calls(workload: TunableWorkload, plan: Plan, operands: Operands) -> list[Call]:
    """Return the calls that compute a workload by a plan, weights packed for it."""
    shape = output_shape(workload)
    if isinstance(plan, GpuPlan):
        weights = [] if operands.weights is None else [families.pack(operands.weights, plan)]
        read = [operands.x] if operands.gate is None else [operands.x, operands.gate]
        return [_call("first", [*read, *weights, *_rest(operands)], len(read), shape, operands)]
    if isinstance(workload, IntegerWorkload):
        assert isinstance(plan, IntegerPlan)
        arrays = tuple(packed_inputs(workload, plan, operands))
        inputs_end = 1 if operands.weights is not None else len(arrays)
        constants = frozenset(range(inputs_end, len(arrays)))
        return [Call("first", arrays, constants, shape, output_dtype(workload))]
    if isinstance(workload, SeparableWorkload):
        assert operands.first is not None
        assert operands.weights is not None
        first = operands.first
        assert isinstance(plan, ApartPlan | SeparablePlan)
        depthwise = [first.x, *_depthwise_constants(first, plan.depthwise)]
        if isinstance(plan, ApartPlan):
            second = [None, pack_matmul(operands.weights, plan.pointwise), *_rest(operands)]
            return [
                _call("first", depthwise, 1, output_shape(workload.depthwise)),
                _call("second", second, 1, shape, operands),
            ]
        packed = pack_matmul(operands.weights, plan.pointwise)
        inputs = [*depthwise, packed, *_rest(operands, shape)]
        return [_call("first", inputs, 1, shape, operands)]
    if isinstance(workload, CascadeWorkload):
        assert isinstance(plan, CascadePlan)
        cascade: list[Any] = [operands.x]
        filters = [own.weights for own in operands.stages if own.weights is not None]
        packed_filters = pack_cascade(filters, workload, plan)
        for filter_, own in zip(packed_filters, operands.stages, strict=True):
            cascade += [filter_, *_rest(replace(own, residual=None))]
        cascade += [] if operands.residual is None else [operands.residual]
        return [_call("first", cascade, 1, shape, operands)]
    if isinstance(workload, PoolWorkload):
        return [_call("first", [operands.x], 1, shape)]
    assert operands.weights is not None
    if isinstance(plan, GatedPlan):
        packed = pack_matmul(operands.weights, plan.pointwise)
        inputs = [operands.x, operands.gate, packed, *_rest(operands)]
        return [_call("first", inputs, 2, shape, operands)]
    if isinstance(plan, MatmulPlan):
        packed = pack_matmul(operands.weights, plan)
    elif isinstance(plan, DepthwisePlan):
        packed = pack_depthwise(operands.weights, plan)
    else:
        assert isinstance(plan, ConvPlan)
        assert isinstance(workload, ConvWorkload)
        packed = pack_conv(operands.weights, plan)
    return [_call("first", [operands.x, packed, *_rest(operands)], 1, shape, operands)]


def _depthwise_constants(operands: Operands, plan: DepthwisePlan) -> list[Any]:
    assert operands.weights is not None
    packed = pack_depthwise(operands.weights, plan)
    return [packed] if operands.bias is None else [packed, operands.bias]


def _rest(operands: Operands, shape: tuple[int, ...] | None = None) -> list[Any]:
    """Return bias and residual where there are any, the residual in the output's shape."""
    rest = [] if operands.bias is None else [operands.bias]
    if operands.residual is not None:
        rest.append(operands.residual if shape is None else operands.residual.reshape(shape))
    return rest


def _call(
    symbol: str,
    inputs: list[Any],
    first_weight: int,
    shape: tuple[int, ...],
    operands: Operands | None = None,
) -> Call:
    last = len(inputs) - (operands is not None and operands.residual is not None)
    return Call(symbol, tuple(inputs), frozenset(range(first_weight, last)), shape)
