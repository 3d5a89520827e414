"""Integer kernels to test: their data, exact references, and the processors to plan for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_mobilenet.schedule.integer.convolution import (
    pack_integer_conv,
    plan_integer_conv,
    write_integer_conv,
)
from tvm_mobilenet.schedule.integer.depthwise import (
    pack_integer_depthwise,
    plan_integer_depthwise,
    write_integer_depthwise,
)
from tvm_mobilenet.schedule.integer.elementwise import (
    plan_elementwise,
    write_integer_add,
    write_integer_pool,
    write_quantize,
)
from tvm_mobilenet.schedule.integer.matmul import (
    pack_integer_matmul,
    plan_integer_matmul,
    write_integer_matmul,
)
from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerDtype,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    QuantizeWorkload,
    Requantize,
)
from tvm_mobilenet.targets import Cpu, TargetSpec, load_target


@dataclass(frozen=True)
class Case:
    """A kernel, its arguments, and what it has to write, to the bit."""

    function: Any
    arguments: list[np.ndarray]
    expected: np.ndarray
    plan: Any


def requantize_for(dtype: IntegerDtype, *, bounded: bool = False) -> Requantize:
    low, high = RANGES[dtype]
    zero_point = -7 if dtype == "int8" else 9
    low = zero_point if bounded else low
    return Requantize(dtype=dtype, zero_point=zero_point, low=low, high=high)


def rounded(total: np.ndarray, scale: Any, requantize: Requantize | None) -> np.ndarray:
    """Round as ONNX Runtime does: float32 product, halves to even, zero point, bounds."""
    steps = total.astype(np.int32).astype(np.float32) * scale
    if requantize is None:
        return steps
    moved = np.rint(steps) + np.float32(requantize.zero_point)
    return np.clip(moved, requantize.low, requantize.high).astype(requantize.dtype)


def values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, extreme: bool = False
) -> np.ndarray:
    """Return random bytes, or nothing but the least and the greatest."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if extreme:
        return rng.choice([low, high], shape).astype(dtype)
    return rng.integers(low, high + 1, shape).astype(dtype)


def scales(rng: np.random.Generator, columns: int, depth: int) -> np.ndarray:
    """Return scales that spread sums of random products over the range of a byte."""
    return (rng.uniform(0.5, 2, columns) * 0.01 / np.sqrt(depth)).astype(np.float32)


def matmul_case(
    rng: np.random.Generator,
    cpu: Cpu,
    size: tuple[int, int, int],
    dtype: IntegerDtype,
    *,
    extreme: bool = False,
    floats: bool = False,
    narrow: bool = False,
) -> Case:
    """`narrow` weights are normal, as those of trained models are, and few are large."""
    rows, depth, columns = size
    workload = IntegerMatmulWorkload(
        rows=rows,
        depth=depth,
        columns=columns,
        dtype=dtype,
        requantize=None if floats else requantize_for(dtype, bounded=True),
    )
    x = values(rng, (rows, depth), dtype, extreme=extreme)
    w = values(rng, (depth, columns), "int8", extreme=extreme)
    if narrow:
        w = np.clip(rng.normal(0, 33, w.shape), -127, 127).astype(np.int8)
    bias = rng.integers(-5000, 5000, columns).astype(np.int32)
    scale = scales(rng, columns, depth)
    packed = pack_integer_matmul(w, bias, scale, dtype, plan_integer_matmul(workload, cpu))
    total = x.astype(np.int64) @ w.astype(np.int64) + bias
    return Case(
        write_integer_matmul(workload, packed),
        [x, *packed.arrays],
        rounded(total, scale, workload.requantize),
        packed.plan,
    )


def windows(x: np.ndarray, w: IntegerConvWorkload) -> dict[tuple[int, int], np.ndarray]:
    """Return what each tap reads of NHWC `x`, padded with the workload's value."""
    top, left, bottom, right = w.padding
    widths = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(x.astype(np.int64), widths, constant_values=w.pad)
    height = (w.out_height - 1) * w.stride[0] + 1
    width = (w.out_width - 1) * w.stride[1] + 1
    return {
        (y, x0): padded[:, y : y + height : w.stride[0], x0 : x0 + width : w.stride[1]]
        for y in range(w.kernel[0])
        for x0 in range(w.kernel[1])
    }


def depthwise_case(
    rng: np.random.Generator,
    cpu: Cpu,
    shape: tuple[int, int, int, int],
    dtype: IntegerDtype,
    *,
    stride: int = 1,
    kernel: int = 3,
    padding: tuple[int, int, int, int] | None = None,
    extreme: bool = False,
) -> Case:
    batch, height, width, channels = shape
    workload = IntegerConvWorkload(
        batch=batch,
        height=height,
        width=width,
        in_channels=channels,
        out_channels=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4 if padding is None else padding,
        pad=11,
        groups=channels,
        dtype=dtype,
        requantize=requantize_for(dtype),
    )
    x = values(rng, shape, dtype, extreme=extreme)
    w = values(rng, (channels, kernel, kernel), "int8", extreme=extreme)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    if extreme:
        # Beyond what float32 adds exactly.
        bias[0] = 2**25 + 1
    scale = scales(rng, channels, kernel * kernel)
    plan = plan_integer_depthwise(workload, cpu)
    packed = pack_integer_depthwise(w, bias, scale, dtype, plan)
    taps = windows(x, workload).items()
    total = sum(part * w[:, ky, kx].astype(np.int64) for (ky, kx), part in taps) + bias
    return Case(
        write_integer_depthwise(workload, packed),
        [x, *packed.arrays],
        rounded(total, scale, workload.requantize),
        packed.plan,
    )


def conv_case(
    rng: np.random.Generator,
    cpu: Cpu,
    shape: tuple[int, int, int, int],
    channels: int,
    dtype: IntegerDtype,
    *,
    stride: int = 2,
    kernel: int = 3,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    extreme: bool = False,
) -> Case:
    batch, height, width, inputs = shape
    workload = IntegerConvWorkload(
        batch=batch,
        height=height,
        width=width,
        in_channels=inputs,
        out_channels=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=padding,
        pad=3,
        dtype=dtype,
        requantize=requantize_for(dtype),
    )
    x = values(rng, shape, dtype, extreme=extreme)
    w = values(rng, (channels, kernel, kernel, inputs), "int8", extreme=extreme)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    scale = scales(rng, channels, kernel * kernel * inputs)
    packed = pack_integer_conv(w, bias, scale, dtype, plan_integer_conv(workload, cpu))
    taps = windows(x, workload).items()
    total = sum(part @ w[:, ky, kx].T.astype(np.int64) for (ky, kx), part in taps) + bias
    return Case(
        write_integer_conv(workload, packed),
        [x, *packed.arrays],
        rounded(total, scale, workload.requantize),
        packed.plan,
    )


def pool_case(
    rng: np.random.Generator, cpu: Cpu, shape: tuple[int, int, int, int], dtype: IntegerDtype
) -> Case:
    batch, height, width, channels = shape
    x = values(rng, shape, dtype)
    scale = np.float32(0.7 / (height * width))
    workload = IntegerPoolWorkload(
        batch=batch,
        pixels=height * width,
        channels=channels,
        bias=-321,
        scale=float(scale),
        dtype=dtype,
        requantize=requantize_for(dtype),
    )
    plan = plan_elementwise(workload, cpu)
    total = x.astype(np.int64).sum(axis=(1, 2)) - 321
    function = write_integer_pool(workload, plan, x_shape=shape, y_shape=(batch, channels))
    return Case(function, [x], rounded(total, scale, workload.requantize), plan)


def add_case(
    rng: np.random.Generator,
    cpu: Cpu,
    shape: tuple[int, ...],
    dtypes: tuple[IntegerDtype, IntegerDtype],
) -> Case:
    a, b = (values(rng, shape, dtype) for dtype in dtypes)
    factors = np.float32(0.37), np.float32(1.21)
    zeros = [RANGES[dtype][0] + 30 for dtype in dtypes]
    workload = IntegerAddWorkload(
        elements=a.size,
        a_dtype=dtypes[0],
        a_zero_point=zeros[0],
        a_factor=float(factors[0]),
        b_dtype=dtypes[1],
        b_zero_point=zeros[1],
        b_factor=float(factors[1]),
        requantize=requantize_for(dtypes[0]),
    )
    plan = plan_elementwise(workload, cpu)
    left, right = (
        (array.astype(np.int32) - zero).astype(np.float32) * factor
        for array, zero, factor in zip((a, b), zeros, factors, strict=True)
    )
    requantize = workload.requantize
    moved = np.rint(left + right) + np.float32(requantize.zero_point)
    expected = np.clip(moved, requantize.low, requantize.high).astype(requantize.dtype)
    return Case(write_integer_add(workload, plan, shape=shape), [a, b], expected, plan)


def quantize_case(
    rng: np.random.Generator, cpu: Cpu, shape: tuple[int, int, int, int], dtype: IntegerDtype
) -> Case:
    step = 0.03
    # Whole steps and halves, and numbers far outside of int32.
    x = (rng.integers(-300, 300, shape) / 2).astype(np.float32) * np.float32(step)
    x.reshape(-1)[:4] = [1e36, -1e36, 1e12, -1e12]
    return quantize_values(x, step, cpu, dtype)


def quantize_values(x: np.ndarray, step: float, cpu: Cpu, dtype: IntegerDtype) -> Case:
    """Quantize float32 NCHW values with a step that is rounded to float32."""
    batch, channels, height, width = x.shape
    requantize = replace(requantize_for(dtype), may_overflow=True)
    workload = QuantizeWorkload(
        batch=batch,
        channels=channels,
        pixels=height * width,
        step=float(np.float32(step)),
        requantize=requantize,
    )
    plan = plan_elementwise(workload, cpu)
    y_shape = (batch, height, width, channels)
    with np.errstate(over="ignore"):
        moved = np.rint(x / np.float32(step)) + np.float32(requantize.zero_point)
    expected = np.clip(moved, requantize.low, requantize.high).astype(dtype)
    function = write_quantize(workload, plan, x_shape=x.shape, y_shape=y_shape)
    return Case(function, [x], expected.transpose(0, 2, 3, 1), plan)


def with_i8mm() -> TargetSpec:
    """Return a Raspberry Pi 5 whose cores had SMMLA, as the emulator's `max` has."""
    spec = load_target("rpi5")
    assert spec.emulation is not None
    return spec.model_copy(
        update={
            "cpu": spec.cpu.model_copy(update={"has_i8mm": True}),
            "tvm": spec.tvm.model_copy(update={"mattr": ("+i8mm",)}),
            "emulation": spec.emulation.model_copy(update={"qemu_cpu": "max"}),
        }
    )


def with_avx_vnni() -> TargetSpec:
    """Return an AVX2 processor with VNNI on 256 bits (Alder Lake and later)."""
    spec = load_target("x86-64-avx2")
    return spec.model_copy(
        update={
            "cpu": spec.cpu.model_copy(update={"has_dot_product": True}),
            "tvm": spec.tvm.model_copy(update={"mattr": ("+avxvnni",)}),
        }
    )
