"""What each integer workload computes, exactly, and operands that show it.

Sums are whole numbers of 64 bits, cut to 32 as the kernels' are; what follows is rounded as
`schedule/integer/requantize.py` says, in float32. Weights are normal and fill the range column by
column, as those of quantized models do: how many are large decides how some kernels sum.
"""

from __future__ import annotations

import numpy as np

from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
    QuantizeWorkload,
    Requantize,
)
from tvm_mobilenet.tuning.operands import Array, Operands

__all__ = ["compute_integer", "integer_operands", "integer_output"]

_LARGEST_BIAS = 5000


def integer_output(workload: IntegerWorkload) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of a workload's output."""
    w = workload
    dtype = "float32" if w.requantize is None else w.requantize.dtype
    if isinstance(w, IntegerMatmulWorkload):
        return (w.rows, w.columns), dtype
    if isinstance(w, IntegerConvWorkload):
        return (w.batch, w.out_height, w.out_width, w.out_channels), dtype
    if isinstance(w, IntegerPoolWorkload):
        return (w.batch, w.channels), dtype
    if isinstance(w, IntegerAddWorkload):
        return (w.elements,), dtype
    return (w.batch, 1, w.pixels, w.channels), dtype


def integer_operands(workload: IntegerWorkload, seed: int) -> Operands:
    """Return seeded operands: weights (depth, columns), or (outputs, kH, kW, inputs of a group)."""
    rng = np.random.default_rng(seed)
    w = workload

    def values(shape: tuple[int, ...], dtype: str) -> Array:
        low, high = RANGES[dtype]
        return rng.integers(low, high + 1, shape).astype(dtype)

    if isinstance(w, IntegerPoolWorkload):
        return Operands(x=values((w.batch, 1, w.pixels, w.channels), w.dtype))
    if isinstance(w, IntegerAddWorkload):
        shape = (w.elements,)
        return Operands(x=values(shape, w.a_dtype), residual=values(shape, w.b_dtype))
    if isinstance(w, QuantizeWorkload):
        # Whole steps and halves, some of them beyond the range.
        steps = rng.integers(-600, 600, (w.batch, w.channels, 1, w.pixels)) / 2
        return Operands(x=(steps * w.step).astype(np.float32))
    x_shape: tuple[int, ...]
    if isinstance(w, IntegerMatmulWorkload):
        x_shape, depth, columns = (w.rows, w.depth), w.depth, w.columns
    else:
        x_shape = (w.batch, w.height, w.width, w.in_channels)
        depth, columns = w.depth, w.out_channels
    normal = rng.standard_normal((depth, columns))
    weights = np.rint(normal * (127 / np.abs(normal).max(axis=0))).astype(np.int8)
    if isinstance(w, IntegerConvWorkload):
        weights = weights.T.reshape(columns, *w.kernel, w.in_channels // w.groups)
    # Sums of such products spread over some hundred steps; powers of two show a sum off by one.
    scale = 2.0 ** -np.ceil(np.log2(30 * np.sqrt(depth))) * rng.choice([1, 0.5], columns)
    return Operands(
        x=values(x_shape, w.dtype),
        weights=np.ascontiguousarray(weights),
        bias=rng.integers(-_LARGEST_BIAS, _LARGEST_BIAS, columns).astype(np.int32),
        scale=scale.astype(np.float32),
    )


def compute_integer(workload: IntegerWorkload, operands: Operands) -> Array:
    """Compute a workload, to the bit."""
    w, x = workload, operands.x
    shape, _ = integer_output(w)
    if isinstance(w, QuantizeWorkload):
        return _rounded(x / np.float32(w.step), w.requantize).transpose(0, 2, 3, 1)
    if isinstance(w, IntegerAddWorkload):
        assert operands.residual is not None
        a = (x.astype(np.int32) - w.a_zero_point).astype(np.float32) * np.float32(w.a_factor)
        b = operands.residual.astype(np.int32) - w.b_zero_point
        return _rounded(a + b.astype(np.float32) * np.float32(w.b_factor), w.requantize)
    if isinstance(w, IntegerPoolWorkload):
        total = x.astype(np.int64).sum(axis=(1, 2)) + w.bias
        return _rounded(_steps(total, np.float32(w.scale)), w.requantize)
    assert operands.weights is not None
    assert operands.bias is not None
    assert operands.scale is not None
    if isinstance(w, IntegerMatmulWorkload):
        total = _product(x, operands.weights)
    else:
        total = _convolve(w, x, operands.weights)
    steps = _steps(total + operands.bias, operands.scale).reshape(shape)
    return steps if w.requantize is None else _rounded(steps, w.requantize)


def _steps(total: Array, scale: Array | np.float32) -> Array:
    return np.asarray(total.astype(np.int32).astype(np.float32) * scale, np.float32)


def _rounded(steps: Array, requantize: Requantize) -> Array:
    r = requantize
    moved = np.rint(steps.astype(np.float64)) + r.zero_point
    return np.asarray(np.clip(moved, r.low, r.high), r.dtype)


def _product(x: Array, weights: Array) -> Array:
    # Exact: float64 holds sums of 2**53, and multiplies by BLAS.
    return np.asarray(np.rint(x.astype(np.float64) @ weights.astype(np.float64)), np.int64)


def _convolve(w: IntegerConvWorkload, x: Array, weights: Array) -> Array:
    """Sum over the taps: each is a shifted, strided view of the padded image."""
    top, left, bottom, right = w.padding
    widths = ((0, 0), (top, bottom), (left, right), (0, 0))
    x = np.pad(x.astype(np.int64), widths, constant_values=w.pad)
    total: Array = np.zeros((w.batch, w.out_height, w.out_width, w.out_channels), np.int64)
    for ky in range(w.kernel[0]):
        for kx in range(w.kernel[1]):
            view = x[:, ky :: w.stride[0], kx :: w.stride[1]][:, : w.out_height, : w.out_width]
            tap = weights[:, ky, kx].astype(np.int64)
            total += view * tap[:, 0] if w.is_depthwise else _product(view, tap.T)
    return total
