"""What each workload should compute, by plain numpy, and operands that show it.

Operands are seeded and scaled so that outputs are of the order of one: then one tolerance serves
all, and an activation cuts off some of them, not all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvm_mobilenet.schedule.integer.workload import IntegerWorkload
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.integer_reference import (
    compute_integer,
    integer_operands,
    integer_output,
)
from tvm_mobilenet.tuning.operands import Array, Operands

__all__ = [
    "Array",
    "Operands",
    "WrongResultError",
    "largest_error",
    "make_operands",
    "output_dtype",
    "output_shape",
    "reference",
    "spoilt",
]

_TOLERANCE = 1e-4
"""Outputs are of the order of one. Sums of a few thousand products in another order differ by about
1e-6 of that; a tap left out or a row missed by more than 1e-2. Whole numbers must be equal."""


class WrongResultError(Exception):
    """A kernel computes something else than its workload."""


def make_operands(workload: TunableWorkload, seed: int = 0) -> Operands:
    """Return seeded operands for a workload."""
    if isinstance(workload, IntegerWorkload):
        return integer_operands(workload, seed)
    rng = np.random.default_rng(seed)
    if isinstance(workload, SeparableWorkload):
        first = make_operands(workload.depthwise, seed)
        second = make_operands(workload.pointwise, seed + 1)
        return replace(second, x=np.zeros(0, np.float32), first=first)

    if isinstance(workload, CascadeWorkload):
        stages = tuple(make_operands(w, seed + n) for n, w in enumerate(workload.stages))
        return Operands(x=stages[0].x, residual=stages[-1].residual, stages=stages)

    if isinstance(workload, GatedWorkload):
        product = make_operands(workload.pointwise, seed)
        # What a hard sigmoid gives, so that outputs stay of the order of one.
        gate = rng.uniform(0, 1, (workload.batch, workload.pointwise.depth)).astype(np.float32)
        return replace(product, gate=gate)

    def normal(shape: tuple[int, ...], scale: float = 1.0) -> Array:
        return (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(np.float32)

    if isinstance(workload, PoolWorkload):
        return Operands(x=normal((workload.batch, workload.pixels, workload.channels)))
    if isinstance(workload, MatmulWorkload):
        x_shape: tuple[int, ...] = (workload.rows, workload.depth)
        w_shape: tuple[int, ...] = (workload.depth, workload.columns)
        fan_in, channels = workload.depth, workload.columns
    else:
        w = workload
        x_shape = (w.batch, w.in_channels, w.height, w.width)
        if w.input_layout == "NHWC":
            x_shape = (w.batch, w.height, w.width, w.in_channels)
        w_shape = (w.out_channels, w.in_channels // w.groups, *w.kernel)
        fan_in, channels = int(np.prod(w_shape[1:])), w.out_channels
    return Operands(
        x=normal(x_shape),
        weights=normal(w_shape, fan_in**-0.5),
        bias=normal((channels,)) if workload.epilogue.bias else None,
        residual=normal(output_shape(workload)) if workload.epilogue.residual else None,
    )


def output_shape(workload: TunableWorkload) -> tuple[int, ...]:
    """Return the shape of a workload's output."""
    if isinstance(workload, IntegerWorkload):
        return integer_output(workload)[0]
    if isinstance(workload, SeparableWorkload):
        w = workload.depthwise
        return (w.batch, w.out_height, w.out_width, workload.pointwise.columns)
    if isinstance(workload, CascadeWorkload):
        return output_shape(workload.stages[-1])
    if isinstance(workload, GatedWorkload):
        return output_shape(workload.pointwise)
    if isinstance(workload, MatmulWorkload):
        return (workload.rows, workload.columns)
    if isinstance(workload, PoolWorkload):
        return (workload.batch, workload.channels)
    return (workload.batch, workload.out_height, workload.out_width, workload.out_channels)


def output_dtype(workload: TunableWorkload) -> str:
    """Return the element type of a workload's output."""
    return integer_output(workload)[1] if isinstance(workload, IntegerWorkload) else "float32"


def reference(workload: TunableWorkload, operands: Operands) -> Array:
    """Compute a workload."""
    if isinstance(workload, IntegerWorkload):
        return compute_integer(workload, operands)
    if isinstance(workload, SeparableWorkload):
        assert operands.first is not None
        between = reference(workload.depthwise, operands.first)
        rows = between.reshape(workload.pointwise.rows, workload.pointwise.depth)
        y = reference(workload.pointwise, replace(operands, x=rows, first=None))
        return y.reshape(output_shape(workload))
    if isinstance(workload, CascadeWorkload):
        result = operands.x
        for stage, own in zip(workload.stages, operands.stages, strict=True):
            result = reference(stage, replace(own, x=result))
        return result
    if isinstance(workload, GatedWorkload):
        assert operands.gate is not None
        images = operands.x.reshape(workload.batch, -1, workload.pointwise.depth)
        x = (images * operands.gate[:, None, :]).reshape(operands.x.shape)
        return reference(workload.pointwise, replace(operands, x=x))
    if isinstance(workload, PoolWorkload):
        mean: Array = operands.x.mean(axis=1, dtype=np.float64).astype(np.float32)
        return mean
    assert operands.weights is not None
    if isinstance(workload, MatmulWorkload):
        y = operands.x @ operands.weights
    else:
        y = _convolve(workload, operands.x, operands.weights)
    return _finish(y, workload.epilogue, operands)


def spoilt(shape: tuple[int, ...], expected: Array | None) -> Array:
    """Return what an output holds before a check: nothing that could pass for a result.

    Args:
        shape: of the output.
        expected: what is to be in it afterwards; None for what lies between two kernels.
    """
    if expected is None or expected.dtype.kind == "f":
        return np.full(shape, np.nan, np.float32)
    return np.asarray(~expected).reshape(shape)


def largest_error(found: Array, expected: Array) -> float:
    """Return the largest difference of what a kernel wrote over `spoilt` to the reference.

    Raises:
        WrongResultError: it is beyond the tolerance, or something was not written.
    """
    if expected.dtype.kind != "f":
        steps = np.abs(found.reshape(expected.shape).astype(np.int64) - expected)
        if steps.any():
            share = 100 * float(np.mean(steps != 0))
            raise WrongResultError(
                f"wrong result: {share:.1f} % of the whole numbers differ, by up to {steps.max()}"
            )
        return 0.0
    difference = np.abs(found.reshape(expected.shape) - expected)
    if not np.isfinite(difference).all():
        share = 100 * float(np.mean(~np.isfinite(difference)))
        raise WrongResultError(f"wrong result: {share:.1f} % of the output is not written")
    worst = float(difference.max(initial=0))
    if worst > _TOLERANCE:
        raise WrongResultError(f"wrong result: off by {worst:.2g} from the reference")
    return worst


def _finish(y: Array, epilogue: Epilogue, operands: Operands) -> Array:
    if operands.bias is not None:
        y = y + operands.bias
    if operands.residual is not None:
        y = y + operands.residual.reshape(y.shape)
    if epilogue.activation == "hard-swish":
        y = y * np.clip(y / 6 + 0.5, 0, 1)
    elif epilogue.activation == "sigmoid":
        y = 1 / (1 + np.exp(-y))
    bounded: Array = np.asarray(np.clip(y, epilogue.low, epilogue.high), np.float32)
    return bounded


def _convolve(workload: ConvWorkload, x: Array, weights: Array) -> Array:
    """Sum over the taps: each is a shifted, strided view of the padded image."""
    w = workload
    if w.input_layout == "NCHW":
        x = x.transpose(0, 2, 3, 1)
    top, left, bottom, right = w.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = np.zeros(output_shape(w), np.float32)
    for ky in range(w.kernel[0]):
        for kx in range(w.kernel[1]):
            rows = slice(ky * w.dilation[0], None, w.stride[0])
            columns = slice(kx * w.dilation[1], None, w.stride[1])
            view = x[:, rows, columns][:, : w.out_height, : w.out_width]
            tap = weights[:, :, ky, kx]
            y += view * tap[:, 0] if w.is_depthwise else view @ tap.T
    return y
